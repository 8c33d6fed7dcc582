"""Whatever a model says, reading it ends soon and never raises."""

import time

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
@pytest.mark.parametrize("name", sorted({(one.reader, one.family): one.name for one in protocols().values()}.values()))
def test_a_million_characters_take_no_more_than_moments(name: str, piece: str) -> None:
    rules = protocols()[name]
    codec = BOX_CODECS[rules.family or "llava"]
    began = time.process_time()
    rules.read(piece * (1_000_000 // len(piece)), META, codec)

    assert time.process_time() - began < 3
