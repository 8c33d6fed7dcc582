"""Sets with one planted fault each: the doctor must name that fault, and no other."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.formats.layouts import image, lines, whole
from vpp_plugins import VPPError
from vpp_plugins.boxes import ImageMeta, codec
from vpp_plugins.data.convert import convert
from vpp_plugins.data.doctor import examine
from vpp_plugins.data.doctor.collect import Fault
from vpp_plugins.data.doctor.doctor import DoctorReport
from vpp_plugins.data.doctor.page import write_doctor_page

SHAPES = ((64, 48), (48, 64), (50, 38), (43, 64), (102, 68))
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(30):
        image(folder / f"{number}.png", SHAPES[number % len(SHAPES)])
    return folder


def boxes(count: int = 60) -> list[tuple[str, tuple[int, int], tuple[float, float, float, float]]]:
    """(image, (width, height), xyxy pixels), the same each time."""
    rng = random.Random(0)
    found = []
    for number in range(count):
        width, height = SHAPES[number % 30 % len(SHAPES)]
        across, down = width * rng.uniform(0.1, 0.6), height * rng.uniform(0.1, 0.6)
        left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
        found.append((f"{number % 30}.png", (width, height), (left, top, left + across, top + down)))
    return found


def dialogue(number: int, image: str, answer: str, *, mark: str = "<image>\n") -> dict[str, Any]:
    question = {"from": "human", "value": mark + codec("llava").prompt(f"thing {number}")}
    return {"id": f"s{number}", "image": image, "conversations": [question, {"from": "gpt", "value": answer}]}


def healthy_dialogues() -> Rows:
    llava = codec("llava")
    return [
        dialogue(number, image, llava.encode([box], ImageMeta((height, width))))
        for number, (image, (width, height), box) in enumerate(boxes())
    ]


def healthy_rows() -> Rows:
    sized = [(image, box, {"height": height, "width": width}) for image, (width, height), box in boxes()]
    return [
        {"image": image, "sent": f"thing {number}", "bbox": [round(value, 1) for value in box], **size}
        for number, (image, box, size) in enumerate(sized)
    ]


def answers(write: Callable[[tuple[int, int], tuple[float, ...]], list[float]]) -> Rows:
    """Dialogues whose boxes are written in another way than LLaVA's."""
    return [dialogue(number, image, str(write(size, box))) for number, (image, size, box) in enumerate(boxes())]


def named(examination: DoctorReport) -> list[str]:
    return [str(finding.fault) for finding in examination.findings]


def dialogues(tmp_path: Path, rows: Rows, folder: Path, **options: Any) -> DoctorReport:
    return examine(whole(tmp_path / "set.json", rows), "vpp-sft", images=folder, progress=False, **options)


def eval_rows(tmp_path: Path, rows: Rows, folder: Path) -> DoctorReport:
    return examine(lines(tmp_path / "set.jsonl", *rows), "eval-jsonl", images=folder, progress=False)


def test_healthy_sets_have_no_findings(tmp_path: Path, images: Path) -> None:
    for found in (dialogues(tmp_path, healthy_dialogues(), images), eval_rows(tmp_path, healthy_rows(), images)):
        assert found.healthy
        assert not found.verdicts[0].contradicts
        assert found.verdicts[0].fits[0].fits == 1
        assert "most likely are what the file says" in str(found.verdicts[0])
        assert (found.samples, found.boxes, found.images) == (60, 60, 30)


def _whole_0_1(size: tuple[int, int], box: tuple[float, ...]) -> list[float]:
    return [round(value / side, 2) for value, side in zip(box, size * 2, strict=True)]


def _0_1000(size: tuple[int, int], box: tuple[float, ...]) -> list[float]:
    return [round(1000 * value / side) for value, side in zip(box, size * 2, strict=True)]


def _0_100(size: tuple[int, int], box: tuple[float, ...]) -> list[float]:
    return [round(100 * value / side) for value, side in zip(box, size * 2, strict=True)]


def _resized(size: tuple[int, int], box: tuple[float, ...]) -> list[float]:
    return [round(336 * value / side) for value, side in zip(box, size * 2, strict=True)]


def _pixels(size: tuple[int, int], box: tuple[float, ...]) -> list[float]:
    return [round(value) for value in box]


def _padded_xywh(size: tuple[int, int], box: tuple[float, ...]) -> list[float]:
    (x1, y1, x2, y2) = json.loads(codec("llava").encode([box], ImageMeta((size[1], size[0]))))
    return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]


@pytest.mark.parametrize(
    ("write", "fault", "meant"),
    [
        (_whole_0_1, [Fault.WRONG_FRAME], "xyxy in 0-1"),
        (_0_100, [Fault.WRONG_UNIT, Fault.WRONG_FRAME], "xyxy in 0-100"),
        (_0_1000, [Fault.WRONG_UNIT, Fault.WRONG_FRAME], "xyxy in 0-1000"),
        (_pixels, [Fault.WRONG_UNIT, Fault.WRONG_FRAME], "xyxy in pixels"),
        (_resized, [Fault.WRONG_UNIT], "xyxy in pixels of the image resized to 336 x 336"),
        (_padded_xywh, [Fault.XYWH_AS_XYXY], "xywh in 0-1 of the padded square"),
    ],
)
def test_dialogues_in_another_frame_or_unit(
    tmp_path: Path, images: Path, write: Any, fault: list[Fault], meant: str
) -> None:
    found = dialogues(tmp_path, answers(write), images)
    assert named(found) == fault
    assert str(found.verdicts[0].best) == meant
    assert found.findings[0].meaning == f"Declared as xyxy in 0-1 of the padded square, the boxes fit {meant}."


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x1, y1, x2, y2: [x1, y1, x2 - x1, y2 - y1], Fault.XYWH_AS_XYXY),
        (lambda x1, y1, x2, y2: [y1, x1, y2, x2], Fault.WRONG_ORDER),
        (lambda x1, y1, x2, y2: [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], Fault.CENTRE_AS_CORNER),
    ],
)
def test_rows_in_another_order(tmp_path: Path, images: Path, change: Any, fault: Fault) -> None:
    rows = [row | {"bbox": [round(value, 1) for value in change(*row["bbox"])]} for row in healthy_rows()]
    assert named(eval_rows(tmp_path, rows, images)) == [fault]


def test_rows_in_the_padded_square(tmp_path: Path, images: Path) -> None:
    rows = healthy_rows()
    for row in rows:
        pad_x, pad_y = ((max(row["width"], row["height"]) - side) // 2 for side in (row["width"], row["height"]))
        row["bbox"] = [value + pad for value, pad in zip(row["bbox"], (pad_x, pad_y) * 2, strict=True)]
    assert named(eval_rows(tmp_path, rows, images)) == [Fault.WRONG_FRAME]


def _change(rows: Rows, **fields: Any) -> Rows:
    """Plant something into rows 5, 15, 25."""
    return [row | fields if number in (5, 15, 25) else row for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "fault", "count"),
    [
        (_change(healthy_rows(), bbox=[30, 20, 900, 40]), Fault.OUT_OF_RANGE, 3),
        (_change(healthy_rows(), bbox=[30, 20, 10, 5]), Fault.INVERTED, 3),
        (_change(healthy_rows(), bbox=[30, 20, 40]), Fault.BROKEN_BOX, 3),
        (_change(healthy_rows(), bbox=[30, 20, 40, 30, 50]), Fault.BROKEN_BOX, 3),
        (_change(healthy_rows(), bbox=[30, 20, float("nan"), 40]), Fault.BROKEN_BOX, 3),
        (_change(healthy_rows(), bbox=[30, 20, 1e30, 40]), Fault.BROKEN_BOX, 3),
        (_change(healthy_rows(), bbox=[0.1, 0.2, 0.5, 0.75]), Fault.WRONG_UNIT, 3),
        (_change(healthy_rows(), bbox="[1, 2, 3, 4]"), Fault.BAD_ROW, 3),
        (_change(healthy_rows(), sent=" "), Fault.EMPTY_TEXT, 3),
        (_change(healthy_rows(), image="missing.png"), Fault.UNREADABLE, 1),
        (_change(healthy_rows(), image="../escape.png"), Fault.UNSAFE_PATH, 1),
        ([*healthy_rows(), *healthy_rows()[:3]], Fault.DUPLICATE, 3),
        ([*healthy_rows(), healthy_rows()[0] | {"bbox": [60, 44, 64, 48]}], Fault.CONFLICT, 1),
    ],
)  # fmt: skip
def test_rows_with_one_planted_fault(tmp_path: Path, images: Path, rows: Rows, fault: Fault, count: int) -> None:
    if fault in (Fault.UNREADABLE, Fault.UNSAFE_PATH):  # rows of several shapes share the planted image
        rows = [
            row | {"width": 64, "height": 48} if row["image"] in ("missing.png", "../escape.png") else row
            for row in rows
        ]
        rows = [row for number, row in enumerate(rows) if number not in (15, 25)]
    found = eval_rows(tmp_path, rows, images)
    assert named(found) == [fault]
    assert found.findings[0].count == count
    assert found.findings[0].examples


def test_image_marks(tmp_path: Path, images: Path) -> None:
    rows = healthy_dialogues()
    rows[3]["conversations"][0]["value"] = "<image>\n" + rows[3]["conversations"][0]["value"]
    found = dialogues(tmp_path, rows, images)
    assert named(found) == [Fault.IMAGE_REPEATED]
    assert found.findings[0].examples[0].startswith("s3")

    rows[3]["conversations"][0]["value"] = codec("llava").prompt("thing 3")
    assert named(dialogues(tmp_path, rows, images)) == [Fault.IMAGE_MISSING]


def test_images_that_break_in_the_middle(tmp_path: Path, images: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    Image.effect_noise((64, 48), 90).save(folder / "5.png")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:1500])
    found = eval_rows(tmp_path, healthy_rows(), folder)
    assert named(found) == [Fault.UNREADABLE]
    assert found.findings[0].examples == ("5.png",)
    only_headers = examine(tmp_path / "set.jsonl", "eval-jsonl", images=folder, decode=0, progress=False)
    assert only_headers.healthy
    assert "0 of 30 images were decoded whole." in only_headers.notes


def test_what_pillow_warns_of_is_not_printed(tmp_path: Path, images: Path) -> None:
    """A truncated TIFF and an image of many pixels put Pillow's warnings between the findings."""
    folder = shutil.copytree(images, tmp_path / "images")
    Image.new("RGB", (64, 48)).save(folder / "whole.tif")
    (folder / "5.png").write_bytes((folder / "whole.tif").read_bytes()[:50])
    assert named(eval_rows(tmp_path, healthy_rows(), folder)) == [Fault.UNREADABLE]


def test_sizes_that_are_not_the_images(tmp_path: Path, images: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    image(folder / "5.png", (640, 480))
    assert named(eval_rows(tmp_path, healthy_rows(), folder)) == [Fault.SIZE_DIFFERS]


class TestLeakage:
    def test_the_same_bytes_under_another_name(self, tmp_path: Path, images: Path) -> None:
        other = tmp_path / "other"
        rng = random.Random(0)
        for name in ("a.png", "b.png"):
            other.mkdir(exist_ok=True)
            Image.frombytes("RGB", (64, 48), rng.randbytes(64 * 48 * 3)).save(other / name)
        rows = [row | {"image": "b.png", "width": 64, "height": 48, "bbox": [1, 1, 9, 9]} for row in healthy_rows()[:1]]
        test = lines(tmp_path / "test.jsonl", *rows)
        folder = shutil.copytree(images, tmp_path / "images")
        path = lines(tmp_path / "train.jsonl", *healthy_rows())
        options = {"images": folder, "against": test, "against_images": other, "progress": False}
        assert examine(path, "eval-jsonl", **options).healthy
        shutil.copy(other / "b.png", folder / "5.png")
        found = examine(path, "eval-jsonl", **options)
        assert (named(found), found.findings[0].examples) == ([Fault.LEAKAGE], ("5.png",))

    def test_coco_goes_by_its_numbers(self, tmp_path: Path) -> None:
        train = lines(tmp_path / "train.jsonl", healthy_rows()[0] | {"image": "train2017/000000000009.jpg"})
        test = lines(tmp_path / "test.jsonl", healthy_rows()[0] | {"image": "COCO_train2014_000000000009.jpg"})
        assert named(examine(train, "eval-jsonl", against=test, progress=False)) == [Fault.LEAKAGE]

    def test_plain_names_count_only_where_no_bytes_can_be_compared(self, tmp_path: Path, images: Path) -> None:
        path = lines(tmp_path / "train.jsonl", *healthy_rows())
        assert named(examine(path, "eval-jsonl", against=path, progress=False)) == [Fault.LEAKAGE]

    def test_bytes_count_where_the_images_lie_in_the_data(self, tmp_path: Path) -> None:
        """Names alone were compared, in silence."""
        for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.png", "blue")):
            Image.new("RGB", (64, 48), colour).save(tmp_path / name)
        row = healthy_rows()[0] | {"width": 64, "height": 48, "bbox": [1, 1, 9, 9]}
        rows = [row | {"image": name} for name in ("a.png", "b.png")]
        both, test = lines(tmp_path / "in.jsonl", *rows), lines(tmp_path / "test.jsonl", row | {"image": "c.png"})
        options = {"source_format": "eval-jsonl", "target_format": "webdataset", "images": tmp_path, "progress": False}
        convert(both, tmp_path / "in", **options)
        against = {"against": test, "against_format": "eval-jsonl", "progress": False}
        by_name = examine(tmp_path / "in", "webdataset", **against)
        assert by_name.healthy
        assert any("are known by their names alone" in note for note in by_name.notes)

        found = examine(tmp_path / "in", "webdataset", **against, against_images=tmp_path)
        assert found.findings[0].examples == ("b.png",)
        assert not any("are known by their names alone" in note for note in found.notes)
        with pytest.raises(VPPError, match="nowhere' does not exist"):
            examine(tmp_path / "in", "webdataset", **against, against_images=tmp_path / "nowhere")
        turned = {"against": tmp_path / "in", "against_format": "webdataset", "progress": False}
        other = examine(test, "eval-jsonl", images=tmp_path, **turned)
        assert other.findings[0].examples == ("c.png",)


@pytest.mark.parametrize(
    ("write", "stated"),
    [
        (_whole_0_1, "0-1"),
        (_0_100, "0-100"),
        (_0_1000, "0-1000"),
        (_pixels, "pixels"),
        (_resized, "0-336"),
        (_padded_xywh, "0-1,padded,xywh"),
    ],
)
def test_the_options_of_the_likeliest_make_the_set_healthy(
    tmp_path: Path, images: Path, write: Any, stated: str
) -> None:
    assert dialogues(tmp_path, answers(write), images).verdicts[0].best.options == f"--boxes {stated}"
    assert dialogues(tmp_path, answers(write), images, boxes=stated).healthy


class TestUndecided:
    def test_what_the_numbers_do_not_decide_is_asked_for(self, tmp_path: Path, images: Path) -> None:
        found = dialogues(tmp_path, healthy_dialogues()[:2], images)
        assert named(found) == [Fault.UNDECIDED]
        assert "The numbers do not decide; state how they are written: --boxes" in str(found.findings[0])
        assert "--boxes 0-1,padded for xyxy in 0-1 of the padded square" in str(found.findings[0])

    def test_what_mends_the_rest_states_it_too(self, tmp_path: Path, images: Path) -> None:
        """The command was refused, as nothing is written while it is not decided how boxes are."""
        found = dialogues(tmp_path, [*healthy_dialogues()[:2], healthy_dialogues()[0]], images)
        assert named(found) == [Fault.DUPLICATE, Fault.UNDECIDED]
        assert " --boxes 0-1,padded --fix set-fixed.json" in found.findings[0].fix

    @pytest.mark.parametrize("stated", ["0-1,padded", "0-1"])
    def test_what_is_stated_is_not_asked_for(self, tmp_path: Path, images: Path, stated: str) -> None:
        assert dialogues(tmp_path, healthy_dialogues()[:2], images, boxes=stated).healthy

    def test_what_the_format_says_is_not_asked_for(self, tmp_path: Path, images: Path) -> None:
        found = eval_rows(tmp_path, healthy_rows()[:1], images)
        assert not found.verdicts[0].decided
        assert found.healthy
        assert "So the boxes are read as the file says, xyxy in pixels." in found.notes

    def test_where_it_is_asked_for_or_decided_nothing_is_said_to_be_read(self, tmp_path: Path, images: Path) -> None:
        asked, decided = (dialogues(tmp_path, healthy_dialogues()[:count], images) for count in (2, 60))
        assert not any("are read as" in note for note in (*asked.notes, *decided.notes))


def test_without_sizes_it_says_that_it_could_not_judge(tmp_path: Path) -> None:
    found = examine(whole(tmp_path / "set.json", healthy_dialogues()), "vpp-sft", progress=False)
    assert not found.verdicts
    assert [finding.count for finding in found.findings] == [found.boxes]  # a set with any fault looked sound
    assert found.findings[0].fix.endswith(" --images FOLDER")
    assert any("could not be judged" in note for note in found.notes)
    assert any("were not looked at" in note for note in found.notes)


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="does not exist"):
        examine(tmp_path / "missing.json", "vpp-sft", progress=False)


class TestPage:
    def test_shows_findings_evidence_and_boxes(self, tmp_path: Path, images: Path) -> None:
        found = dialogues(tmp_path, answers(_whole_0_1), images)
        text = write_doctor_page(found, tmp_path / "page.html").read_text()
        assert "wrong frame" in text
        assert "odds beside the most likely" in text
        assert "less than 1 to a million" in text
        assert "log" not in text.partition("<h2>How the boxes")[0].partition("</style>")[2]
        assert "xyxy in 0-1 of the padded square (declared)" in text
        assert text.count("data:image/jpeg;base64,") == 36 + 1  # the samples, and where boxes lie
        assert "http://" not in text
        assert "https://" not in text

    def test_escapes_what_the_data_say_and_draws_on_grey_without_images(self, tmp_path: Path) -> None:
        rows = [row | {"sent": "<script>alert(1)</script>"} for row in healthy_rows()[:2]]
        found = examine(lines(tmp_path / "set.jsonl", *rows), "eval-jsonl", progress=False)
        text = write_doctor_page(found, tmp_path / "page.html").read_text()
        assert "<script>" not in text
        assert text.count("<img") == 6 + 1

    def test_a_image_that_is_said_to_be_enormous_is_drawn_small(self, tmp_path: Path) -> None:
        """The grey canvas had the stated size: a million pixels a side ended the page for want of memory."""
        row = {"image": "none.png", "sent": "x", "bbox": [10, 10, 900_000, 900_000], "width": 10**6, "height": 10**6}
        found = examine(lines(tmp_path / "set.jsonl", row), "eval-jsonl", progress=False)
        text = write_doctor_page(found, tmp_path / "page.html").read_text()
        assert "[10, 10, 900000, 900000]" in text
        assert len(text) < 100_000

    def test_shows_what_a_fix_changes_and_what_the_set_is_like(self, tmp_path: Path, images: Path) -> None:
        found = dialogues(tmp_path, answers(_0_1000), images)
        text = write_doctor_page(found, tmp_path / "page.html").read_text()
        assert "What --fix changes" in text
        assert "read as xyxy in 0-1000, and written as the format has them" in text
        assert "state --boxes 0-1000 wherever it is read, or write it anew: vpp doctor" in text
        assert "set-fixed.json" in text
        assert "Where the boxes&#39; middles lie" in text
        assert text.count("<polyline") == 2

    def test_needs_no_boxes(self, tmp_path: Path) -> None:
        found = examine(lines(tmp_path / "set.jsonl", {"image": "a"}), "eval-jsonl", progress=False)
        page = write_doctor_page(dataclasses.replace(found, notes=()), tmp_path / "page.html")
        assert "rows that cannot be used" in page.read_text()
