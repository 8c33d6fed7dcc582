"""Damaged, odd and slow files of data end in a sentence, soon, and never end the process."""

import contextlib
import io
import json
import pickle
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpp_plugins.data import Issue
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.formats.refer import load_plain_pickle
from vpp_plugins.errors import VPPError
from vpp_plugins.images import load_image

ROW = {"turns": json.dumps([{"ask": "What?", "answer": "That."}]), "id": "0", "width": 40, "height": 30}


def read(path: Path, name: str) -> tuple[int, Reading]:
    reading = Reading()
    return len(list(read_samples(path, name, reading=reading))), reading


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_damage_to_tables_is_a_sentence(tmp_path: Path, suffix: str) -> None:
    """Reading a damaged Arrow file ended the process, by SIGSEGV or SIGBUS."""
    from datasets import Dataset

    path = tmp_path / f"a{suffix}"
    rows = Dataset.from_list([{**ROW, "id": str(number)} for number in range(50)])
    if suffix == ".parquet":
        rows.to_parquet(path)
    else:
        rows.save_to_disk(tmp_path / "saved")
        path.write_bytes(next((tmp_path / "saved").glob("*.arrow")).read_bytes())
    whole, rng = path.read_bytes(), random.Random(0)
    assert read(path, "datasets")[0] == 50
    for _ in range(12):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        with contextlib.suppress(VPPError):
            read(path, "datasets")


def test_strings_that_are_not_utf8(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bad = pa.array([b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"turns": [ROW["turns"]], "id": bad}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"file_name": bad, "question_id": ["0"]}), tmp_path / "b.parquet")
    for name, kind in (("a", "datasets"), ("b", "lmms-parquet")):
        with pytest.raises(VPPError, match="UTF"):
            read(tmp_path / f"{name}.parquet", kind)


def test_columns_that_nobody_reads_are_not_decoded(tmp_path: Path) -> None:
    from datasets import Audio, Dataset

    rows = [{"turns": ROW["turns"], "id": "0", "sound": {"bytes": b"no sound", "path": None}}]
    sound = Dataset.from_list(rows).cast_column("sound", Audio())
    sound.to_parquet(tmp_path / "a.parquet")
    kept, reading = read(tmp_path / "a.parquet", "datasets")
    assert kept + reading.tally.counts[Issue.BAD_FIELD] == 1


def test_damage_to_tar_headers_is_a_sentence(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.json")
            data = json.dumps({"turns": [{"ask": "What?", "answer": "That."}]}).encode()
            member.size = len(data)
            if number == 1:
                member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 20}
            tar.addfile(member, io.BytesIO(data))
    whole, rng = file.getvalue(), random.Random(0)
    path = tmp_path / "a.tar"
    for turn in range(300):
        data = bytearray(whole)
        for _ in range(turn and rng.randint(1, 4)):
            data[rng.randrange(0, len(data) // 2)] = rng.choice(b"0179Sx\x00\xff=")
        path.write_bytes(data)
        with contextlib.suppress(VPPError):
            read(path, "webdataset")


def test_a_small_pickle_is_read_or_refused_at_once(tmp_path: Path) -> None:
    """Tuples within tuples, each twice in the next, take 2^n steps to hash as a key."""
    nested = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.EMPTY_TUPLE
    nested += (pickle.DUP + pickle.TUPLE2) * 60 + pickle.NONE + pickle.SETITEM + pickle.STOP
    several = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + pickle.EMPTY_TUPLE
    several += (pickle.DUP + pickle.TUPLE2) * 60 + pickle.NONE + pickle.SETITEMS + pickle.STOP
    begun = time.monotonic()
    for data in (nested, several):
        (tmp_path / "a.p").write_bytes(data)
        with pytest.raises(VPPError, match="broken pickle"):
            load_plain_pickle(tmp_path / "a.p")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("depth", [500, 3000, 100_000])
def test_nesting_and_endless_numbers_are_counted_or_a_sentence(tmp_path: Path, depth: int) -> None:
    nested, number = "[" * depth + "]" * depth, "9" * 5000
    for name, good in (("vpp-sft", "conversations"), ("ms-swift", "messages"), ("neutral", "turns")):
        for row in (
            f'{{"{good}": {nested}, "image": {nested}, "images": {nested}, "img": {nested}}}',
            f'{{"id": {number}, "{good}": [], "image": {number}, "width": {number}}}',
        ):
            (tmp_path / "rows.jsonl").write_text(row + "\n")
            try:
                kept, reading = read(tmp_path / "rows.jsonl", name)
            except VPPError as error:
                assert "nested too deeply" in str(error)  # noqa: PT017
            else:
                assert kept == 0
                assert reading.tally.counts.total()


TWICE = {
    "neutral": '{"image": "a.png", "image": "b.png", "turns": []}',
    "vpp-sft": '[{"id": "0", "conversations": []}, {"id": "1", "image": "a.png", "conversations": [{"from": "human", '
    '"value": "a", "value": "b"}]}]',
    "coco": '{"images": [], "images": [{"id": 1}], "annotations": [], "categories": []}',
    "gseval": '[{"bbox": [1, 2, 3, 4], "bbox": [5, 6, 7, 8]}]',
}


@pytest.mark.parametrize("name", list(TWICE))
def test_a_key_that_stands_twice_is_named(name: str, tmp_path: Path) -> None:
    """The last won without a word, for a whole section of COCO the first."""
    (tmp_path / "rows.json").write_text("\n" + TWICE[name])
    with pytest.raises(VPPError, match=r"at line 2\b.*: the key '(image|value|images|bbox)' stands twice"):
        read(tmp_path / "rows.json", name)


@pytest.mark.parametrize(
    "address", ["http://a b/", "http://", "https://[/", "http://a:b/", "http://\x00/", "http://é\n/"]
)
def test_an_address_that_is_none_is_a_sentence(address: str) -> None:
    with pytest.raises(VPPError, match="could not be fetched"):
        load_image(address)


def test_a_name_that_cannot_be_opened_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, said in (("loop.png", "symbolic links"), ("x" * 300 + ".png", "too long")):
        with pytest.raises(VPPError, match=rf"cannot be opened \(.*{said}"):
            load_image(tmp_path / name)


def test_large_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("L", (12_000, 12_000)).save(tmp_path / "a.png")
    begun = time.monotonic()
    with pytest.raises(VPPError, match="12000 x 12000 pixels, and at most 64,000,000 are decoded"):
        load_image(tmp_path / "a.png")
    assert time.monotonic() - begun < 2
    Image.new("L", (90, 90)).save(tmp_path / "b.png")
    with pytest.raises(VPPError, match="at most 8,000"):
        load_image(tmp_path / "b.png", max_pixels=8000)
    assert load_image(tmp_path / "b.png", max_pixels=8100).size == (90, 90)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_what_they_hold(tmp_path: Path, bits: int, suffix: str) -> None:
    full = 2**bits - 1
    grey = np.linspace(0, full, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    loaded = np.asarray(load_image(tmp_path / f"a.{suffix}"))[..., 0]
    assert np.abs(loaded - grey / full * 255).max() <= 0.5


def test_32_bits_without_a_range_are_refused() -> None:
    for value in (-5, 70_000):
        with pytest.raises(VPPError, match="no known range"):
            load_image(Image.fromarray(np.full((16, 16), value, np.int32)))


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_12_bits_in_16_are_refused(bits: int) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colours = np.linspace(0, 2**bits - 1, 16 * 16 * 3).reshape(16, 48).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    if bits == 16:
        assert np.asarray(load_image(data)).max() == 255
    else:
        with pytest.raises(VPPError, match="use 14 or fewer"):
            load_image(data)
