"""A clear box is read in the family's own unit, whatever the brackets; what is not clear is no box."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpp_plugins.boxes import BOX_CODECS, BoxStatus, ImageMeta, codec
from vpp_plugins.data.dialogue import Phrases
from vpp_plugins.data.sample import Talk, Tally

META = ImageMeta((480, 640), (476, 644))
TOKENS, TWINS = ("kosmos-2", "florence-2", "paligemma"), ("vpp-llava", "llava-next", "qwen3.5")
CORNERS_FIRST = sorted(name for name, row in BOX_CODECS.items() if row.text is not None and name not in TOKENS + TWINS)
seeded = settings(derandomize=True, deadline=None, max_examples=60, database=None)

SPELLINGS = {
    "brackets": "[{}, {}, {}, {}]",
    "twice": "[[{}, {}, {}, {}]]",
    "thrice": "[[[{}, {}, {}, {}]]]",
    "round brackets": "({}, {}, {}, {})",
    "braces": "{{{}, {}, {}, {}}}",
    "no blanks": "[{},{},{},{}]",
    "lines": "[\n  {},\n  {},\n  {},\n  {}\n]",
    "corners": "({},{}),({},{})",
    "corners apart": "( {} , {} ) , ( {} , {} )",
    "corners in lists": "[[{}, {}], [{}, {}]]",
    "corners in a tuple": "(({}, {}), ({}, {}))",
    "Qwen's tags": "<box>({},{}),({},{})</box>",
    "Qwen2's tags": "<|object_ref_start|>cup<|object_ref_end|><|box_start|>({},{}),({},{})<|box_end|>",
    "InternVL's tags": "<ref>cup</ref><box>[[{}, {}, {}, {}]]</box>",
    "DeepSeek's tags": "<|ref|>cup<|/ref|><|det|>[[{}, {}, {}, {}]]<|/det|>",
    "GLM's tags": "<|begin_of_box|>[{}, {}, {}, {}]<|end_of_box|>",
    "MiniGPT's": "<p>cup</p> {{<{}><{}><{}><{}>}}",
    "without its braces": "<{}><{}><{}><{}>",
    "JSON": '[{{"bbox_2d": [{}, {}, {}, {}], "label": "cup"}}]',
    "Python": "[{{'bbox_2d': [{}, {}, {}, {}], 'label': 'cup'}}]",
    "a fence": '```json\n[{{"bbox_2d": [{}, {}, {}, {}], "label": "cup"}}]\n```',
    "another key": '{{"bbox": [{}, {}, {}, {}]}}',
    "strings": '[{{"bbox_2d": ["{}", "{}", "{}", "{}"], "label": "cup"}}]',
    "a string": '[{{"bbox_2d": "{}, {}, {}, {}", "label": "cup"}}]',
    "a list in a string": '[{{"bbox_2d": "[{}, {}, {}, {}]", "label": "cup"}}]',
    "nested": '[{{"bbox_2d": [[{}, {}, {}, {}]], "label": "cup"}}]',
    "points": '[{{"bbox_2d": [[{}, {}], [{}, {}]], "label": "cup"}}]',
    "names": '{{"x1": {}, "y1": {}, "x2": {}, "y2": {}}}',
    "names of names": '{{"bbox": {{"x_min": {}, "y_min": {}, "x_max": {}, "y_max": {}}}}}',
    "named in words": "x1={}, y1={}, x2={}, y2={}",
    "full width": "［{}，{}，{}，{}］",
    "full width in round brackets": "（{}，{}）， （{}，{}）",
    "the comma of lists": "[{}、{}、{}、{}]",
    "JSON of full width": '[{{"bbox_2d"：[{}，{}，{}，{}]，"label"："杯子"}}]',
    "trailing words": "[{}, {}, {}, {}] is where it is.",
    "words around": "It is at [{}, {}, {}, {}], on the left.",
    "a key too many": '[{{"bbox_2d": [{}, {}, {}, {}], "label": "cup", "confidence": 0.9}}]',
    "bare": "{}, {}, {}, {}",
}


def numbers_of(family: str) -> tuple[float, ...]:
    full = codec(family).scale.full or 400
    return tuple(share if full == 1 else round(share * full) for share in (0.2, 0.3, 0.6, 0.7))


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("family", CORNERS_FIRST)
def test_a_clear_box_is_read_in_the_family_s_unit(family: str, spelling: str) -> None:
    row, numbers = codec(family), numbers_of(family)
    box, _ = row.to_pixels(numbers, META)
    decoded = row.decode(spelling.format(*numbers), META)
    assert (decoded.boxes_xyxy_px, decoded.statuses) == ((box,), (BoxStatus.OK,))
    assert decoded.labels[0] in (None, "cup", "杯子")


def test_digits_of_full_width() -> None:
    assert codec("qwen2.5-vl").decode("［１０，２０，１１０，２２０］", META) == codec("qwen2.5-vl").decode(
        "[10,20,110,220]", META
    )


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('[{"bbox_2d": ["1", "2", "3", "4"], "label": "a"}, {"bbox_2d": ["1", "2", "3", "4"], "label": "b"}]', "ab"),
        ("<ref>a</ref><box>(1,2),(30,40)</box><ref>b</ref><box>(1,2),(30,40)</box>", "ab"),
        ("<|object_ref_start|>a<|object_ref_end|>" + "<|box_start|>(1,2),(30,40)<|box_end|>" * 2, "aa"),
        ('[{"label": "a", "bbox_2d": [[1, 2], [30, 40]]}, {"label": "b", "bbox_2d": [[1, 2], [30, 40]]}]', "ab"),
        ('[{"bbox_2d"：[1，2，30，40]，"label"："a"}， {"bbox_2d"：[1，2，30，40]，"label"："b"}]', "ab"),
    ],
)  # fmt: skip
def test_several_keep_their_labels(text: str, labels: str) -> None:
    decoded = codec("qwen2.5-vl").decode(text, META)
    assert decoded.labels == tuple(labels)
    assert len(set(decoded.boxes_xyxy_px)) == 1


@pytest.mark.parametrize("family", CORNERS_FIRST)
@pytest.mark.parametrize(
    "text",
    [
        "[10%, 20%, 50%, 60%]",
        "[10px, 20px, 50px, 60px]",
        "[0.1 0.2 0.5 0.6]",
        "[1e1, 2e1, 3e1, 4e1]",
        "[0,1; 0,2; 0,5; 0,6]",
        "(1,2), (3,4), (5,6)",
        "[[1, 2], [3, 4], [5, 6], [7, 8]]",
        "<1><2><3><4><5>",
        '{"points": [[10, 20], [30, 40]]}',
        '{"point_2d": [10, 20]}, {"point_2d": [30, 40]}',
        '{"x": 10, "y": 20, "width": 30, "height": 40}',
        "center (10, 20), size 30 x 40",
        "[１０％，２０％，５０％，６０％]",
        '{"bbox_xywh": [0.1, 0.2, 0.5, 0.6]}',
        '{"bbox": [0.1, 0.2, 0.5, 0.6], "format": "xywh"}',
        '{"box_2d": [0.1, 0.2, 0.5, 0.6], "label": "cup"}',
        '{"bbox_yxyx": [0.1, 0.2, 0.5, 0.6]}',
        "[ymin, xmin, ymax, xmax] = [0.1, 0.2, 0.5, 0.6]",
        "(x, y, width, height) = (0.1, 0.2, 0.5, 0.6)",
        '{"ymin": 0.1, "xmin": 0.2, "ymax": 0.5, "xmax": 0.6}',
        "[0.1, 0.2, 0.5, 0.6] as cxcywh",
        '{"keypoints": [0.1, 0.2, 0.5, 0.6]}',
        '{"segmentation": [[0.1, 0.2, 0.5, 0.6]]}',
        '{"line": [0.1, 0.2, 0.5, 0.6]}',
        '{"color": [0.1, 0.2, 0.5, 0.6]}',
    ],
)
def test_what_is_not_clear_is_not_guessed(family: str, text: str) -> None:
    assert codec(family).decode(text, META).statuses == (BoxStatus.UNPARSABLE,)


@pytest.mark.parametrize("family", TOKENS)
@pytest.mark.parametrize("text", ["[10, 20, 110, 220]", "(10,20),(110,220)", '{"bbox_2d": [10, 20, 110, 220]}'])
def test_families_of_tokens_have_no_other_spelling(family: str, text: str) -> None:
    """Their numbers are cells, bins, or have y first: in brackets it is not clear which is meant."""
    assert codec(family).decode(text, META).statuses == (BoxStatus.UNPARSABLE,)


@seeded
@given(st.sampled_from(sorted(SPELLINGS)), st.sampled_from(CORNERS_FIRST), st.data())
def test_any_box_in_any_spelling(spelling: str, family: str, data: st.DataObject) -> None:
    row = codec(family)
    full = row.scale.full or 400
    share = st.floats(0, 0.45).map(lambda value: round(value, 2) if full == 1 else round(value * full))
    left, top, width, height = data.draw(st.tuples(share, share, share, share))
    numbers = left, top, round(left + width, 2), round(top + height, 2)
    placed, status = row.to_pixels(numbers, META)
    decoded = row.decode(SPELLINGS[spelling].format(*numbers), META)
    assert decoded.statuses == (status,)
    assert decoded.boxes_xyxy_px == (() if placed is None else (placed,))


def test_data_are_read_in_the_family_s_own_spelling_only() -> None:
    """Points of a geometry question are no boxes of a LLaVA dialogue."""
    question, answer = "How far is (1, 2), (3, 4) from here?", "It is 5."
    assert Phrases(codec("llava")).read(question, answer, "1", Tally()) == Talk(question, answer)
