import io
import os
import pickle
import pickletools
import struct
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpp_plugins import VPPError
from vpp_plugins.data.formats.refer import load_plain_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)
FROM_FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@FROM_FIXTURES
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_data_of_every_protocol_load(tmp_path: Path, value: object, protocol: int) -> None:
    (tmp_path / "a.p").write_bytes(pickle.dumps(value, protocol))
    assert load_plain_pickle(tmp_path / "a.p") == value


def test_strings_of_python_2_load(tmp_path: Path) -> None:
    # What Python 2 writes for [{'sent': 'caf\xe9', 'id': 5L}], protocol 2.
    (tmp_path / "a.p").write_bytes(b"\x80\x02]q\x00}q\x01(U\x04sentU\x04caf\xe9U\x02id\x8a\x01\x05ua.")
    assert load_plain_pickle(tmp_path / "a.p") == [{"sent": "café", "id": 5}]


class _Runs:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("value", [_Runs(), date(2020, 1, 1), {1, 2}, bytearray(b"x"), pickle.loads, 1j])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_anything_else_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.p").write_bytes(pickle.dumps([value], protocol))
    with pytest.raises(VPPError, match="is not a pickle of plain lists"):
        load_plain_pickle(tmp_path / "a.p")
    assert not (tmp_path / "ran").exists()


def test_persistent_objects_and_extensions_are_refused(tmp_path: Path) -> None:
    for code in (b"Pname\n.", b"\x80\x02\x82\x01.", b"ios\nsystem\n(Vls\ntR."):
        (tmp_path / "a.p").write_bytes(code)
        with pytest.raises(VPPError):
            load_plain_pickle(tmp_path / "a.p")


def test_a_large_memo_index_claims_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a.p").write_bytes(b"\x80\x02]r" + struct.pack("<I", 2**31) + b".")
    assert load_plain_pickle(tmp_path / "a.p") == []


@FROM_FIXTURES
@given(data=st.binary(max_size=200))
def test_noise_is_refused_with_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.p").write_bytes(data)
    try:
        load_plain_pickle(tmp_path / "a.p")
    except VPPError:
        return
    assert list(pickletools.genops(io.BytesIO(data)))  # a whole pickle by chance


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="cannot be read"):
        load_plain_pickle(tmp_path / "missing.p")
