"""A row that claims an image is never read as one without; what is claimed and not used is counted and named."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.faults.commands import vpp
from vpp_plugins.data import Issue, convert
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.sample import Talk
from vpp_plugins.errors import VPPError

ASKED, ANSWERED = "<image>\nWhat is it?", "A cup."
TURNS = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]
MESSAGES = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
ROWS: dict[str, dict[str, Any]] = {
    "vpp-sft": {"conversations": TURNS},
    "ms-swift": {"messages": MESSAGES},
    "neutral": {"turns": [{"ask": "What is it?", "answer": ANSWERED}]},
}
READ = (
    {"image": "a.png"},
    {"images": "a.png"},
    {"images": ["a.png"]},
    {"image": ["a.png"]},
    {"image": {"path": "a.png"}},
    {"image": None, "images": ["a.png"]},
    {"image": "a.png", "images": ["a.png"], "mask": "m.png"},
)
REFUSED = ({"images": ["a.png", "b.png"]}, {"image": "a.png", "images": ["b.png"]}, {"images": [None]}, {"image": {}},
           {"image": 7}, {"picture": "a.png"}, {"img_path": "x/a.JPG"}, {"media": [{"path": "a.webp"}]},
           {"video": "a.mp4"}, {"file": "data:image/png;base64,AAAA"}, {"image_url": "http://x.y/a.jpg?size=1"},
           {"image_url": "https://x.y/z/12345"}, {"image_base64": "iVBORw0KGgo="}, {"image_bytes": [137, 80]},
           {"image_id": "a.png"}, {"meta": {"image": "a.png"}}, {"data": {"x": [{"path": "a.png"}]}},
           {"videos": ["v"]}, {"media": "http://x.y/a.png#top"})  # fmt: skip


def read(tmp_path: Path, name: str, row: dict[str, Any]) -> tuple[list[str], Reading]:
    reading, path = Reading(), tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return [sample.image for sample in read_samples(path, name, reading=reading)], reading


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("claim", READ, ids=str)
def test_one_image_is_read_under_either_key(tmp_path: Path, name: str, claim: dict[str, Any]) -> None:
    images, reading = read(tmp_path, name, ROWS[name] | claim)
    assert images == ["a.png"]
    assert not reading.tally.counts


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("claim", REFUSED, ids=str)
def test_all_else_is_counted_and_named(tmp_path: Path, name: str, claim: dict[str, Any]) -> None:
    images, reading = read(tmp_path, name, {"id": "row 7"} | ROWS[name] | claim)
    assert images == []
    assert reading.tally.examples[Issue.BAD_FIELD][0].startswith("row 7: ")


@pytest.mark.parametrize("name", ["vpp-sft", "ms-swift"])
@pytest.mark.parametrize("claim", [{}, {"image": None}, {"image": ""}, {"images": []}], ids=str)
def test_a_mark_without_an_image_is_counted(tmp_path: Path, name: str, claim: dict[str, Any]) -> None:
    images, reading = read(tmp_path, name, ROWS[name] | claim)
    assert images == []
    assert reading.tally.counts == {Issue.IMAGE_UNNAMED: 1}


@pytest.mark.parametrize("name", ["vpp-sft", "ms-swift"])
@pytest.mark.parametrize(
    "mark",
    ["<img>a.png</img>", "<|vision_start|><|image_pad|><|vision_end|>", "<ImageHere>", "<IMAGE>", "<image_1>",
     "<|image_1|>", "<image_placeholder>", "<video>"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["question", "answer", "system"])
def test_the_marks_of_all_families_claim_an_image(tmp_path: Path, name: str, mark: str, place: str) -> None:
    """A dialogue in Qwen-VL's layout names its image in the text alone, and was read as one without."""
    said = {"system": "Help.", "question": "What is it?", "answer": "A cup."}
    said[place] = f"{mark}\n{said[place]}"
    if name == "vpp-sft":
        roles = {"system": "system", "question": "human", "answer": "gpt"}
        row: dict[str, Any] = {"conversations": [{"from": roles[who], "value": said[who]} for who in said]}
    else:
        roles = {"system": "system", "question": "user", "answer": "assistant"}
        row = {"messages": [{"role": roles[who], "content": said[who]} for who in said]}
    images, reading = read(tmp_path, name, row)
    assert images == []
    assert reading.tally.counts == {Issue.IMAGE_UNNAMED: 1}


PARTS = ({"type": "image"}, {"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {"url": "a.png"}},
         {"type": "video", "video": "a"}, {"type": "image", "path": "a.png"})  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_an_image_among_the_parts_of_a_message(tmp_path: Path, part: dict[str, Any]) -> None:
    """The message was left out, and the next question read as one about nothing."""
    asked = {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}
    row = {"messages": [asked, MESSAGES[1], {"role": "user", "content": "What colour?"}, MESSAGES[1]]}
    images, reading = read(tmp_path, "ms-swift", row)
    assert images == []
    assert reading.tally.counts[Issue.BAD_FIELD] + reading.tally.counts[Issue.IMAGE_UNNAMED] == 1


@pytest.mark.parametrize("name", ROWS)
def test_words_about_files_are_words(tmp_path: Path, name: str) -> None:
    row = json.loads(json.dumps(ROWS[name]).replace("A cup.", "Save it as cup.png").replace("<image>\\n", ""))
    images, reading = read(tmp_path, name, row | {"id": "cup.jpg", "question_id": "cup.jpg", "width": 3})
    assert images == [""]
    assert not reading.tally.counts


def test_the_mark_of_a_neutral_row_s_own_image_is_no_word(tmp_path: Path) -> None:
    """Other formats have it in their questions; a model of another family was taught to read it."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "turns": [{"ask": ASKED, "answer": ANSWERED}]}))
    ((turn,),) = (sample.turns for sample in read_samples(tmp_path / "rows.jsonl", "neutral"))
    assert turn == Talk("What is it?", ANSWERED)


@pytest.mark.parametrize("turn", [{"ask": ASKED, "answer": ANSWERED}, {"ask": "What?", "answer": "<|image_pad|>"}])
def test_a_neutral_dialogue_claims_an_image_too(tmp_path: Path, turn: dict[str, str]) -> None:
    """It was read as text, and trained on with the mark of an image that is not there."""
    assert read(tmp_path, "neutral", {"turns": [turn]})[1].tally.counts == {Issue.IMAGE_UNNAMED: 1}


def test_words_about_marks_are_words(tmp_path: Path) -> None:
    row = {
        "conversations": [{"from": "human", "value": "What does HTML's <img> do?"}, {"from": "gpt", "value": "Show."}]
    }
    images, reading = read(tmp_path, "vpp-sft", row)
    assert images == [""]
    assert not reading.tally.counts


BOXED = {"image": "a.png", "width": 40, "height": 30}
STRAY = {
    "more placeholders": ({"ask": "Is <bbox> at <bbox>?", "answer": "x", "boxes": [[1, 2, 9, 9]]}, Issue.PLACEHOLDER),
    "fewer placeholders": ({"ask": "What?", "answer": "x", "boxes": [[1, 2, 9, 9]]}, Issue.BAD_FIELD),
    "in an expression": ({"locate": "a <bbox> cup", "boxes": [[1, 2, 9, 9]]}, Issue.PLACEHOLDER),
    "in a description": ({"describe": [[1, 2, 9, 9]], "text": "a <bbox>"}, Issue.PLACEHOLDER),
}


@pytest.mark.parametrize("case", STRAY)
def test_placeholders_are_as_many_as_boxes(tmp_path: Path, case: str) -> None:
    """Writing such a turn ended in a RuntimeError, or wrote a box without text, or what nobody can read."""
    turn, issue = STRAY[case]
    images, reading = read(tmp_path, "neutral", BOXED | {"turns": [turn, {"ask": "What?", "answer": "That."}]})
    assert images == ["a.png"]
    assert reading.tally.counts == {issue: 1}


def test_words_that_stand_for_an_expression_are_not_written(tmp_path: Path) -> None:
    """ms-swift's lines with them cannot be read back: they were counted as written."""
    turns = [{"ask": "a <ref-object>", "answer": "x"}, {"locate": "a <ref-object>", "boxes": [[1, 2, 9, 9]]}]
    (tmp_path / "in.jsonl").write_text(json.dumps(BOXED | {"turns": turns}))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    done = convert(tmp_path / "in.jsonl", tmp_path / "out.jsonl", source_format="neutral", target_format="ms-swift",
                   progress=False)  # fmt: skip
    (sample,) = read_samples(tmp_path / "out.jsonl", "ms-swift", images=tmp_path)
    assert (done.turns, done.tally.counts) == (1, {Issue.NOT_WRITABLE: 1})
    assert [turn.expression for turn in sample.located()] == ["a <ref-object>"]


def test_a_placeholder_in_a_dialogue_without_an_image_is_no_box(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "What is <bbox>?"}, {"from": "gpt", "value": "A word."}]}
    assert read(tmp_path, "vpp-sft", row)[1].tally.counts[Issue.PLACEHOLDER] == 1


@pytest.mark.parametrize("order", ["0.json 1.json 0.png 1.png", "0.png 1.png 0.json 1.json", "a.json A.png"])
def test_a_shard_whose_images_stand_apart_from_their_rows_is_refused(tmp_path: Path, order: str) -> None:
    """Its rows were read as text alone."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in order.split():
            data = b'{"turns": [{"ask": "What?", "answer": "That."}]}' if name.endswith("json") else b"x"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(VPPError, match=r"pieces that do not stand together.*tar --sort=name"):
        list(read_samples(tmp_path / "a.tar", "webdataset", reading=Reading()))


def test_a_split_names_what_its_format_cannot_hold(tmp_path: Path) -> None:
    turns = [{"locate": "a cup", "boxes": [[1, 2, 9, 9]]}, {"ask": "What?", "answer": "That."}]
    rows = [BOXED | {"image": f"{number}.png", "turns": turns} for number in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = vpp("data", "split", tmp_path / "in.jsonl", tmp_path / "out", "--from", "neutral", "--to", "eval-jsonl")
    assert run.code == 0
    assert "4 x turn that the format cannot hold, left out" in run.printed


def test_boxes_without_an_image_are_counted(tmp_path: Path) -> None:
    turns = [{"locate": "a cup", "boxes": [[1, 2, 3, 4]]}, {"ask": "What is a cup?", "answer": "A vessel."}]
    images, reading = read(tmp_path, "neutral", {"turns": turns})
    assert images == [""]
    assert reading.tally.counts == {Issue.NO_IMAGE: 1}


def test_every_row_is_read_or_counted_whatever_its_keys(tmp_path: Path) -> None:
    """Random claims among random keys: no sample comes without an image, and none vanishes without a count."""
    rng = random.Random(0)
    values = ["a.png", ["a.png"], ["a.png", "b.png"], None, [], "", {"path": "a.png"}, {"bytes": "x"}, 3, [None], "no"]
    keys = ["image", "images", "img", "image_path", "picture", "photo", "video"]
    for name in ROWS:
        for _ in range(100):
            row = ROWS[name] | {key: rng.choice(values) for key in rng.sample(keys, rng.randint(1, 3))}
            images, reading = read(tmp_path, name, row)
            claimed = any("a.png" in json.dumps(value) for key, value in row.items() if key in keys)
            assert not claimed or images in (["a.png"], ["no"]) or reading.tally.counts.total() == 1


def test_a_conversion_that_writes_nothing_fails(tmp_path: Path) -> None:
    source, target = tmp_path / "talk.jsonl", tmp_path / "out"
    rows = [{"id": f"t{n}", "turns": [{"ask": "What?", "answer": "That."}]} for n in range(16)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("eval-jsonl", "genixer", "gseval", "coco", "odvg"):
        with pytest.raises(VPPError, match=f"nothing of .* could be written as {name}.*16 x turn that the format"):
            convert(source, target, source_format="neutral", target_format=name, progress=False)
        assert not target.exists()
    run = vpp("data", "convert", source, target, "--from", "neutral", "--to", "eval-jsonl")
    assert run.code == 1
    assert "Traceback" not in run.complained
    assert not target.exists()


def test_what_stood_there_stays_where_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_text(json.dumps({"turns": [{"ask": "What?", "answer": "That."}]}))
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(VPPError, match="nothing of"):
        convert(tmp_path / "talk.jsonl", tmp_path / "out.jsonl", source_format="neutral", target_format="odvg",
                overwrite=True, progress=False)  # fmt: skip
    assert (tmp_path / "out.jsonl").read_text() == "before"


@pytest.mark.parametrize("name", ["eval-jsonl", "odvg", "coco", "webdataset", "neutral", "vpp-sft"])
def test_a_conversion_counts_what_it_wrote(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    located = {"image": "a.png", "width": 40, "height": 30}
    rows = [
        located | {"turns": [{"locate": "a cup", "boxes": [[1, 2, 9, 9]]}, {"ask": "What?", "answer": "That."}]},
        located | {"turns": [{"ask": "What?", "answer": "That."}]},
        located | {"image": "gone.png", "turns": [{"locate": "a cup", "boxes": [[1, 2, 9, 9]]}]},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = tmp_path / "out"
    done = convert(tmp_path / "in.jsonl", target, source_format="neutral", target_format=name, images=tmp_path,
                   progress=False)  # fmt: skip
    found = list(read_samples(target, name, images=tmp_path, reading=Reading()))
    boxes = [box for sample in found for turn in sample.turns for box in turn.boxes]
    assert done.boxes == {"webdataset": 1}.get(name, 2)
    assert len(boxes) == done.boxes - (name == "vpp-sft")  # whose sizes are those of the images, and one is gone
    assert done.turns == {"webdataset": 3, "neutral": 4, "vpp-sft": 4}.get(name, 2)


def test_a_shard_with_an_image_that_is_not_read_is_counted(tmp_path: Path) -> None:
    def shard(*members: str) -> Reading:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in [
                ("0.json", b'{"turns": [{"ask": "What?", "answer": "That."}]}'),
                *((m, b"x") for m in members),
            ]:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        reading = Reading()
        kept = list(read_samples(tmp_path / "a.tar", "webdataset", reading=reading))
        assert len(kept) + reading.tally.counts.total() == 1
        return reading

    assert not shard("0.jpg").tally.counts
    assert not shard("0.txt").tally.counts
    for members in (["0.avif"], ["0.image.jpg"], ["0.jpg", "0.png"], ["0.heic"]):
        assert shard(*members).tally.counts == {Issue.NO_IMAGE: 1}


def test_the_doctor_calls_an_empty_set_empty(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("[]")
    run = vpp("doctor", tmp_path / "train.json", "--format", "vpp-sft")
    assert run.code == 1
    assert "no samples" in run.printed
