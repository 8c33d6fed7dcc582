"""Whatever an answer holds, and however long it is: reading it ends soon, with boxes or a status, never a traceback."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpp_plugins import VPPError
from vpp_plugins.boxes import BOX_CODECS, BoxStatus, ImageMeta, answer_of, codec
from vpp_plugins.evaluate.protocol import protocols
from vpp_plugins.train.rewards import rewards

META = ImageMeta((480, 640), (476, 644))
TWINS = ("vpp-llava", "llava-next", "qwen3.5")  # which write as others do
FAMILIES = sorted(name for name, row in BOX_CODECS.items() if row.text is not None and name not in TWINS)
seeded = settings(derandomize=True, deadline=None, max_examples=80, database=None)

MANY = 15_000
ANSWERS = {
    "qwen2.5-vl": '{"bbox_2d": [1, 2, 30, 40], "label": "a"}, ',
    "qwen3-vl": '{"bbox_2d": ["1", "2", "30", "40"], "label": "a"}, ',
    "internvl": "<ref>a</ref><box>[[1, 2, 30, 40]]</box>",
    "qwen-vl": "<ref>a</ref><box>(1,2),(30,40)</box>",
    "minigpt-v2": "<p>a</p> {<1><2><30><40>} ",
    "paligemma": "<loc0001><loc0002><loc0030><loc0040> a ; ",
    "llava": "[0.1, 0.3, 0.4, 0.5] ",
}


@pytest.mark.parametrize(("family", "text"), ANSWERS.items())
def test_fifteen_thousand_boxes_with_labels_are_read_in_linear_time(family: str, text: str) -> None:
    """They took 3 s: each label was written over all boxes before it."""
    row = codec(family)
    began = time.process_time()
    decoded = row.decode(text * MANY, META)
    assert time.process_time() - began < 3  # 0.1 to 0.6 s on an idle machine
    assert len(decoded.boxes_xyxy_px) == len(decoded.labels) == len(decoded.statuses) == MANY
    assert set(decoded.labels) <= {"a", None}


def test_labels_without_braces_are_read_in_linear_time() -> None:
    began = time.process_time()
    decoded = codec("qwen3-vl").decode('[1, 2, 30, 40], "label": "a", ' * MANY, META)
    assert time.process_time() - began < 3
    assert set(decoded.labels) == {"a"}


@pytest.mark.parametrize("name", ["iou", "giou", "f1", "format"])
def test_they_are_rewarded_in_linear_time(name: str) -> None:
    boxes = [(1, 2, 30 + more, 40) for more in range(1 if name in ("iou", "giou") else 10)]
    truth = {"boxes": [boxes], "size_hw": [(480, 640)]}
    reward = getattr(rewards("internvl"), name)
    began = time.process_time()
    assert 0 <= reward([ANSWERS["internvl"] * MANY], **truth)[0] <= 1
    assert time.process_time() - began < 6


PIECES = [
    "<think>", "</think>", "<think ", "< ", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<|channel|>final ",
    "\\boxed{", "! ", "\nfinal answer: ", "\n> ", "\nquestion: ", "```", "```json\n", "```python\n1", "\n```1.1 ", '"',
    "“", '"a', '"a": "', "'a': '\\", '"bbox_2d": ', '"bbox_2d": {', '"bbox_2d": "', '\\"', "<box>", "</box>1", "(1",
    "(1, 2), ", '"x1": 1, ', '["1", ', '("1", ', "<1>", "[1,", "[1, 1], ", '"tags": [', "[ ", "1.", "、", "，", "［",
    "１，", '"point": 1 ', "{", "\n" + " " * 50, "\t", ">", '"answer": ',
    "<!--", "~~", "~~1", "<del>", "[INST]", "\n### ", "\nUSER:", "\nanswer: ", "the answer is ", "x, y, w, ", "y_min, ",
    '"ids": [1, ', "<|im_start|>", "<unused94>", "<seed:", "<｜tool▁calls▁begin｜>",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_long_answers_of_anything_take_linear_time(piece: str) -> None:
    began = time.process_time()
    for family in ("qwen3-vl", "qwen-vl", "minigpt-v2", "paligemma"):
        for before in ("", '"bbox_2d": [1, 2, 3, '):
            codec(family).decode(before + piece * (40_000 // len(piece)), META)
    assert time.process_time() - began < 5  # below 1 s; what is quadratic needs a minute


HARD = [
    "[" * 10_000 + "]" * 10_000,
    '{"a": ' * 5_000,
    '[{"bbox_2d": ' * 5_000,
    f"[{'9' * 5000}, 2, 3, 4]",
    f'{{"bbox_2d": [{"9" * 5000}, 2, 3, 4]}}',
    f'{{"bbox_2d": ["{"9" * 5000}", "2", "3", "4"]}}',
    f"<loc_{'9' * 5000}>" * 4,
    f"<patch_index_{'9' * 5000}>" * 2,
    f"{{<{'9' * 5000}><2><3><4>}}",
    f"({'1' * 5000},{'1' * 5000}),({'1' * 5000},{'1' * 5000})",
    f"[0.{'1' * 5000}, 0.2, 0.{'3' * 5000}, 0.4]",
    "[１, ２, ３, ４" + "９" * 5000 + "]",
    "[²³, ½, ④, ٣]",
    "\ud800[0.1, 0.2, 0.3, 0.4]\udfff",
    '[{"bbox_2d": [1, 2, 3, 4], "label": "\ud83d"}]',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "\\ud83d"}]',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "\\u12"}]',
    "\x00[0.1, 0.2, 0.3, 0.4]\x00",
    "",
]


@pytest.mark.parametrize("text", HARD, ids=lambda text: ascii(text[:24]))
def test_hard_answers_have_a_status(text: str) -> None:
    for family in BOX_CODECS:
        assert codec(family).decode(text, META).statuses
    for rules in protocols().values():
        row = codec(rules.family or "llava")
        if rules.task == "box":
            assert 0 <= rules.iou(rules.read(text, META, row), (10.0, 20.0, 300.0, 400.0), META, row) <= 1
    assert 0 <= rewards("qwen3-vl").iou([text], boxes=[[(1, 2, 3, 4)]], size_hw=[(480, 640)])[0] <= 1


BOXES = ["[0.1, 0.2, 0.3, 0.4]", "[10, 20, 110, 220]", "(1,2),(30,40)", "<loc_1>", "\ud800", "９", "label"]
JUNK = st.text(st.characters(), max_size=60) | st.lists(st.sampled_from([*PIECES, *BOXES])).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
@seeded
@given(JUNK)
def test_junk_gives_boxes_in_the_image_or_a_status(family: str, text: str) -> None:
    decoded = codec(family).decode(text, META)
    assert len(decoded.labels) == len(decoded.boxes_xyxy_px)
    assert len(decoded.statuses) == max(1, len(decoded.boxes_xyxy_px))
    assert bool(decoded.boxes_xyxy_px) == (not {BoxStatus.UNPARSABLE, BoxStatus.NONE} & set(decoded.statuses))
    for x1, y1, x2, y2 in decoded.boxes_xyxy_px:
        assert 0 <= x1 <= x2 <= 640
        assert 0 <= y1 <= y2 <= 480
    assert codec(family).decode(answer_of(text), META) == decoded


@seeded
@given(st.lists(JUNK, min_size=1, max_size=3))
def test_junk_is_rewarded_with_a_number(texts: list[str]) -> None:
    truth = {"boxes": [[(1, 2, 30, 40)]] * len(texts), "size_hw": [(480, 640)] * len(texts)}
    family = rewards("qwen3-vl")
    for reward in (family.iou, family.giou, family.f1, family.format):
        assert all(0 <= value <= 1 for value in reward(texts, **truth))
        reward.explanation().encode()


@pytest.mark.parametrize("family", ["internvl", "paligemma", "florence-2"])
def test_half_a_character_in_a_label_is_a_sentence(family: str) -> None:
    with pytest.raises(VPPError, match="A label must be words") as said:
        codec(family).encode([(1, 2, 30, 40)], META, ["a\ud800"])
    str(said.value).encode()
