import json
from pathlib import Path

import pytest

from tests.data.formats.layouts import ASK, BOX, LLAVA_665K, gpt, human, image, lines, whole
from vpp_plugins import VPPError
from vpp_plugins.data.convert import convert
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.sample import Describe, Issue, Locate, Talk


def near(box: tuple[float, ...]) -> object:
    return pytest.approx(box, abs=3.2 + 1e-6)  # half of 0.01 of 640


@pytest.fixture
def images(tmp_path: Path) -> Path:
    image(tmp_path / "images" / "coco" / "train2017" / "000000033471.jpg")
    return tmp_path / "images"


def test_llava_665k_gives_its_grounding_subset(tmp_path: Path, images: Path) -> None:
    reading = Reading()
    first, text_only = read_samples(
        whole(tmp_path / "l.json", LLAVA_665K), "llava-665k", images=images, reading=reading
    )

    question, located, described = first.turns
    assert isinstance(question, Talk)
    assert question.question.startswith("What are the colors")
    assert isinstance(located, Locate)
    assert located.expression == "white cup on left"
    assert located.boxes == (near(BOX),)
    assert isinstance(described, Describe)
    assert (first.width, first.height) == (640, 480)
    assert text_only.turns == (Talk("Sum these: [0.1, 0.2, 0.3]", "0.6"),)
    assert reading.tally.counts == {Issue.NOT_SELECTED: 1}


@pytest.mark.parametrize("write", [whole, lambda path, rows: lines(path, *rows)])
def test_an_array_and_lines_read_alike_and_come_back_word_for_word(tmp_path: Path, images: Path, write) -> None:
    rows = [LLAVA_665K[0]]
    convert(write(tmp_path / "in.json", rows), tmp_path / "out.json", source_format="vpp-sft", target_format="vpp-sft",
            images=images, progress=False)  # fmt: skip
    assert json.loads((tmp_path / "out.json").read_text()) == rows


def test_image_marks_are_counted_and_mended(tmp_path: Path, images: Path) -> None:
    image = LLAVA_665K[0]["image"]
    pair = [human(f"<image>\n{ASK}the cup."), gpt("[0.1, 0.28, 0.5, 0.72]")]
    bare = [human(f"{ASK}the cup."), gpt("[0.1, 0.28, 0.5, 0.72]")]
    rows = [
        {"id": 1, "image": image, "conversations": pair * 3},
        {"id": 2, "image": image, "conversations": bare},
        {"id": 3, "image": image, "conversations": pair},
    ]
    done = convert(whole(tmp_path / "in.json", rows), tmp_path / "out.json", source_format="vpp-sft",
                   target_format="vpp-sft", images=images, progress=False)  # fmt: skip
    assert done.tally.counts == {Issue.IMAGE_REPEATED: 1, Issue.IMAGE_MISSING: 1}
    for row in json.loads((tmp_path / "out.json").read_text()):
        marks = [message["value"].count("<image>") for message in row["conversations"]]
        assert marks == [1] + [0] * (len(marks) - 1)


@pytest.mark.parametrize(
    ("answer", "issue"),
    [
        ("[0.1, 0.2, 0.3]", Issue.WRONG_COUNT),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", Issue.WRONG_COUNT),
        ("[0.5, 0.28, 0.1, 0.72]", Issue.INVERTED),
        ("[0.1, 0.01, 0.5, 0.05]", Issue.OUTSIDE),
        ("[nan, 0.28, 0.5, 0.72]", Issue.NO_BOX),
        ("[0.1, 0.05, 0.5, 0.72]", Issue.CLIPPED),
    ],
)
def test_broken_boxes_are_counted_with_the_sample(tmp_path: Path, images: Path, answer: str, issue: Issue) -> None:
    row = {
        "id": "17",
        "image": LLAVA_665K[0]["image"],
        "conversations": [human(f"<image>\n{ASK}the cup."), gpt(answer)],
    }
    reading = Reading()
    found = list(read_samples(whole(tmp_path / "in.json", [row]), "vpp-sft", images=images, reading=reading))

    assert reading.tally.counts[issue] == 1
    assert reading.tally.examples[issue][0].startswith("17")
    assert len(found) == (issue is Issue.CLIPPED)
    assert all(box[1] == 0 for sample in found for turn in sample.turns for box in turn.boxes)


@pytest.mark.parametrize(
    ("row", "issue"),
    [
        (5, Issue.BAD_FIELD),
        ({"id": 1, "image": 7, "conversations": []}, Issue.BAD_FIELD),
        ({"id": 1, "image": "a.jpg", "conversations": "none"}, Issue.BAD_TURNS),
        ({"id": 1, "image": "a.jpg", "conversations": [gpt("first")]}, Issue.BAD_TURNS),
        ({"id": 1, "image": "a.jpg", "conversations": [human("x"), human("y"), gpt("z")]}, Issue.BAD_TURNS),
        ({"id": 1, "image": "a.jpg", "conversations": [human("x"), {"from": "gpt", "value": 5}]}, Issue.BAD_TURNS),
        ({"id": 1, "image": "../a.jpg", "conversations": [human("x"), gpt("y")]}, Issue.UNSAFE_PATH),
        ({"id": 1, "image": "/etc/passwd", "conversations": [human("x"), gpt("y")]}, Issue.UNSAFE_PATH),
        ({"id": 1, "image": "no.jpg", "conversations": [human(ASK + "x."), gpt("[0, 0, 1, 1]")]}, Issue.NO_IMAGE),
    ],
)  # fmt: skip
def test_broken_rows_are_counted(tmp_path: Path, images: Path, row: object, issue: Issue) -> None:
    reading = Reading()
    list(read_samples(whole(tmp_path / "in.json", [row]), "vpp-sft", images=images, reading=reading))
    assert reading.tally.counts[issue] == 1


def test_sizes_in_the_row_need_no_images(tmp_path: Path) -> None:
    row = {**LLAVA_665K[0], "width": 640, "height": 480}
    (sample,) = read_samples(whole(tmp_path / "in.json", [row]), "vpp-sft")
    assert sample.width == 640


def test_without_sizes_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="give the folder of the images"):
        list(read_samples(whole(tmp_path / "in.json", LLAVA_665K), "vpp-sft"))


def test_one_family_becomes_another(tmp_path: Path, images: Path) -> None:
    convert(whole(tmp_path / "in.json", LLAVA_665K[:1]), tmp_path / "out.json", source_format="vpp-sft",
            target_format="vpp-sft", target_family="internvl", images=images, progress=False)  # fmt: skip
    (row,) = json.loads((tmp_path / "out.json").read_text())
    said = [message["value"] for message in row["conversations"]]
    assert said[2] == f"{ASK}<ref>white cup on left</ref>"
    assert said[3] == "<ref>white cup on left</ref><box>[[100, 207, 500, 793]]</box>"
    assert said[4] == "Please provide a short description for this region: <box>[[100, 207, 500, 793]]</box>."


def test_points_cannot_be_written(tmp_path: Path, images: Path) -> None:
    with pytest.raises(VPPError, match="writes points, not boxes"):
        convert(whole(tmp_path / "in.json", LLAVA_665K[:1]), tmp_path / "out.json", source_format="vpp-sft",
                target_format="vpp-sft", target_family="molmo", images=images, progress=False)  # fmt: skip
    assert not (tmp_path / "out.json").exists()
