import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_plugins.boxes import BOX_CODECS, ImageMeta, codec
from vpp_plugins.data.dialogue import Phrases
from vpp_plugins.data.sample import Describe, Issue, Locate, Talk, Tally, Turn

PADBOX = json.loads((Path(__file__).parents[1] / "reference" / "padbox.json").read_text())
LLAVA = Phrases(codec("llava"))
META = ImageMeta((480, 640))
ONE, TWO = (64.0, 96.0, 320.0, 384.0), (128.0, 96.0, 192.0, 384.0)
WRITING_BOXES = sorted(name for name, found in BOX_CODECS.items() if found.text and found.scale.full is not None)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_numbers_in_a_json_string_are_no_box(family: str) -> None:
    """A label that quotes a box, as a caption of a chart may, became a second true box."""
    answer = '[{"bbox_2d": [10, 20, 30, 40], "label": "the sign [1, 2, 3, 4]"}]'
    turn = Phrases(codec(family)).read("Where?", answer, "0", Tally())
    assert isinstance(turn, Talk)
    assert turn.boxes == ((10.0, 20.0, 30.0, 40.0),)
    assert "[1, 2, 3, 4]" in turn.answer


def test_half_a_character_is_no_label() -> None:
    """It was written as one, and ended the conversion as a UnicodeEncodeError."""
    for family in WRITING_BOXES:
        answer = Phrases(codec(family)).write(Locate("cup \ud800", (ONE,)), META)[1]
        answer.encode()


@pytest.mark.parametrize("row", PADBOX, ids=lambda row: row["text"])
def test_boxes_are_written_as_the_reference_writes_them(row: dict) -> None:
    meta = ImageMeta((row["h"], row["w"]))
    assert LLAVA.write(Locate("x", (tuple(map(float, row["bbox"])),)), meta)[1] == row["text"]
    read = LLAVA.read(codec("llava").prompt("x"), row["text"], "0", Tally())
    assert read == Locate("x", (tuple(row["normalised"]),))


@pytest.mark.parametrize("family", WRITING_BOXES)
@pytest.mark.parametrize(
    "turn",
    [
        Locate("the red cup", (ONE,)),
        Locate("the red cup", (ONE, TWO)),
        Describe((ONE,), "a red cup, no. 3"),
        Talk("what stands at <bbox>?", "A cup, beside <bbox>, as in [1].", (ONE, TWO)),
        Talk("hello", "hi"),
    ],
)
def test_every_family_reads_its_own_turns_back(family: str, turn: Turn) -> None:
    phrases, tally = Phrases(codec(family)), Tally()
    read = phrases.read(*phrases.write(turn, META), "0", tally)
    boxes = [phrases.codec.to_pixels(numbers, META)[0] for numbers in read.boxes]
    step = max(phrases.codec.step_px(META))
    assert type(read) is type(turn)
    assert all(box == pytest.approx(truth, abs=step) for box, truth in zip(boxes, turn.boxes, strict=True))
    assert phrases.write(type(read)(**_with_boxes(read, tuple(boxes))), META) == phrases.write(turn, META)
    assert not tally.counts


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[0.1, 0.2, 0.3]", Locate("x", ((0.1, 0.2, 0.3),))),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", Locate("x", ((0.1, 0.2, 0.3, 0.4, 0.5),))),
        ("[0.1, 0.2, 0.3, 0.4]", Locate("x", ((0.1, 0.2, 0.3, 0.4),))),
        ("There is none.", Talk(codec("llava").prompt("x"), "There is none.")),
        ("At [0.1, 0.2, 0.3, 0.4], see?", Talk(codec("llava").prompt("x"), "At <bbox>, see?", ((0.1, 0.2, 0.3, 0.4),))),
    ],
)  # fmt: skip
def test_a_grounding_question_is_located_only_by_boxes(answer: str, expected: Turn) -> None:
    assert LLAVA.read(codec("llava").prompt("x"), answer, "0", Tally()) == expected


@pytest.mark.parametrize("answer", ["", "[nan, 0.2, 0.3, 0.4]", "[1e9, 0.2, 0.3, 0.4]", "[0.1 0.2 0.3 0.4]"])
def test_an_answer_that_should_be_a_box_and_is_none_is_counted(answer: str) -> None:
    tally = Tally()
    assert LLAVA.read(codec("llava").prompt("x"), answer, "17", tally) is None
    assert tally.counts == {Issue.NO_BOX: 1}
    assert tally.examples[Issue.NO_BOX][0].startswith("17")


USUAL = [
    ("Please provide the bounding box coordinate of the region this sentence describes: {}", "a man, no. 3"),
    ("please provide the bounding box coordinates of the region that this sentence describes: {}.", "it"),
    ("Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>", "it"),
    ("Give me the bounding box of {}.", "the man about to answer the phone"),
    ("What are the bounding box coordinates of {}?", "the cup"),
    ("What is the location of {} in the image?", "the cup in the picture on the wall"),
    ("Where is {} in the image? answer in [x0,y0,x1,y1] format.", "the cup"),
    ("Where is {}? answer in [[x0,y0,x1,y1]] format.", "the cup"),
    ("In the image, where are {} located?", "the cups"),
    ("Can you please locate {}?", "the sign of St. Mary"),
    ("Locate {} in this image and output the bbox coordinates in JSON format.", "the cup"),
    (
        'Locate every object that matches the description "{}" in the image. Report bbox coordinates in JSON format.',
        "x",
    ),
    ("Detect '{}'", "a cup"),
]


@pytest.mark.parametrize(("question", "expression"), USUAL)
@pytest.mark.parametrize("family", ["llava", "vpp-llava", "internvl", "qwen3-vl"])
def test_usual_wordings_are_located_in_every_family(question: str, expression: str, family: str) -> None:
    phrases, tally = Phrases(codec(family)), Tally()
    answer = phrases.write(Locate(expression, (ONE,)), META)[1]
    turn = phrases.read(question.format(expression), answer, "0", tally)
    assert isinstance(turn, Locate)
    assert turn.expression == expression
    assert not tally.counts


@pytest.mark.parametrize(
    "question", ["What color is it?", "Where was this taken?", "Show me the way to Rome.", "And it?"]
)
def test_other_wordings_stay_text_and_are_counted(question: str) -> None:
    tally = Tally()
    assert LLAVA.read(question, "[0.1, 0.2, 0.3, 0.4]", "7", tally) == Talk(question, "<bbox>", ((0.1, 0.2, 0.3, 0.4),))
    assert tally.examples == {Issue.OTHER_WORDS: [f"7: {question}"]}
    assert LLAVA.read(question, "At [0.1, 0.2, 0.3, 0.4].", "7", Tally()).answer == "At <bbox>."


def test_a_usual_wording_answered_in_words_is_no_question_for_a_box() -> None:
    assert LLAVA.read("Where is the cat?", "On the bed.", "0", Tally()) == Talk("Where is the cat?", "On the bed.")


@pytest.mark.parametrize("family", ["llava", "vpp-llava"])
def test_the_sentence_on_axes_is_no_part_of_an_expression(family: str) -> None:
    """Read as LLaVA's, it was taken for the end of every expression of VPP-LLaVA's data."""
    question = codec("vpp-llava").prompt("the cup")
    assert Phrases(codec(family)).read(question, "[0.1, 0.2, 0.3, 0.4]", "0", Tally()) == Locate(
        "the cup", ((0.1, 0.2, 0.3, 0.4),)
    )


@pytest.mark.parametrize(
    "question",
    ["Describe this region: {}", "What is in the region {}?", "Write a short caption of the region {}.", "Describe {}"],
)
def test_usual_questions_for_a_region_are_descriptions(question: str) -> None:
    turn = LLAVA.read(question.format("[0.1, 0.2, 0.3, 0.4]"), "A cup.", "0", Tally())
    assert turn == Describe(((0.1, 0.2, 0.3, 0.4),), "A cup.")
    other = LLAVA.read("Is [0.1, 0.2, 0.3, 0.4] red?", "Yes.", "0", Tally())
    assert isinstance(other, Talk)


def test_lists_that_are_not_four_numbers_stay_text_and_are_counted() -> None:
    tally = Tally()
    turn = LLAVA.read("What is at [0.5, 0.25]?", "Nothing [0.1, 0.2, 0.3, 0.4, 0.5].", "0", tally)
    assert turn == Talk("What is at [0.5, 0.25]?", "Nothing [0.1, 0.2, 0.3, 0.4, 0.5].")
    assert tally.counts == {Issue.ODD_LIST: 2}


def test_text_that_holds_the_placeholder_is_left_out_and_counted() -> None:
    tally = Tally()
    assert LLAVA.read("What is it <bbox>?", "A cup.", "0", tally) is None
    assert tally.counts == {Issue.PLACEHOLDER: 1}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit", ["1", "[", "[1", "[1,", " ", "<", "<bbox", "[0.1, 0.2, 0.3, 0.4]", '"', "(1,2),", "{<1>"]
)
def test_a_million_characters_take_no_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    for family in ("llava", "qwen3-vl", "internvl"):
        Phrases(codec(family)).read(codec(family).prompt("x"), "[" + text, "0", Tally())
        Phrases(codec(family)).read("Where is " + text, "[0.1, 0.2, 0.3, 0.4]", "0", Tally())


@given(question=st.text(), answer=st.text(), family=st.sampled_from(sorted(BOX_CODECS)))
def test_any_text_reads_as_something(question: str, answer: str, family: str) -> None:
    turn = Phrases(codec(family)).read(question, answer, "0", Tally())
    if isinstance(turn, Talk) and not turn.boxes:
        assert (turn.question, turn.answer) == (question, answer)


@given(
    left=st.floats(0, 600),
    top=st.floats(0, 440),
    width=st.floats(20, 40),
    height=st.floats(20, 40),
    expression=st.text(min_size=1).filter(lambda text: "<bbox>" not in text),
)
def test_two_decimals_survive_the_way_through_pixels(
    left: float, top: float, width: float, height: float, expression: str
) -> None:
    turn = Locate(expression, ((left, top, left + width, top + height),))
    question, answer = LLAVA.write(turn, META)
    read = LLAVA.read(question, answer, "0", Tally())
    if isinstance(read, Locate):  # an expression may hold a box itself
        pixels = tuple(LLAVA.codec.to_pixels(numbers, META)[0] for numbers in read.boxes)
        assert LLAVA.write(Locate(read.expression, pixels), META) == (question, answer)


def _with_boxes(turn: Turn, boxes: tuple) -> dict:
    return {name: getattr(turn, name) for name in turn.__dataclass_fields__} | {"boxes": boxes}
