"""Whatever a model says, reading it ends soon and never raises."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpp_plugins.boxes import BOX_CODECS, ImageMeta
from vpp_plugins.evaluate.protocol import protocols

PIECES = [
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    "<",
    ">",
    ",",
    ";",
    ".",
    "-",
    " ",
    "1",
    "0.5",
    "999",
    "1e9",
    "nan",
    "box",
    '"label": ',
]
META = ImageMeta((480, 640), (476, 644))
ANSWERS = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=60).map("".join))


@given(answer=ANSWERS)
@settings(max_examples=200, deadline=None)
def test_every_protocol_reads_every_answer(answer: str) -> None:
    for rules in protocols().values():
        for codec in (BOX_CODECS[rules.family],) if rules.family else BOX_CODECS.values():
            reading = rules.read(answer, META, codec)
            assert 0 <= rules.iou(reading, (10.0, 20.0, 300.0, 400.0), META, codec) <= 1 + 1e-6


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", sorted(protocols()))
def test_a_million_characters_take_no_more_than_moments(name: str, piece: str) -> None:
    rules = protocols()[name]
    codec = BOX_CODECS[rules.family or "llava"]
    began = time.process_time()
    rules.read(piece * (1_000_000 // len(piece)), META, codec)

    assert time.process_time() - began < 3


FUZZER = """
import sys
import atheris

with atheris.instrument_imports(include=["vpp_plugins.boxes", "vpp_plugins.evaluate.readers"]):
    from vpp_plugins.boxes import BOX_CODECS, ImageMeta
    from vpp_plugins.evaluate.readers import READERS

META = ImageMeta((480, 640), (476, 644))

def read(data):
    answer = atheris.FuzzedDataProvider(data).ConsumeUnicodeNoSurrogates(400)
    for codec in BOX_CODECS.values():
        codec.decode(answer, META)
    for reader in READERS.values():
        reader(answer, META, BOX_CODECS["llava"])

atheris.Setup([sys.argv[0], "-max_total_time=20", "-max_len=800", "-timeout=5"], read)
atheris.Fuzz()
"""


@pytest.mark.slow
def test_coverage_guided_fuzzing_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    (tmp_path / "fuzz.py").write_text(FUZZER)
    finished = subprocess.run(
        [sys.executable, "fuzz.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110
    )

    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "Done" in finished.stderr
