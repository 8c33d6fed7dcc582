"""What is planted is gone from the set that a fix writes, all else is there, and the doctor then finds nothing."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.doctor.test_doctor import (
    Rows,
    _0_1000,
    _padded_xywh,
    _pixels,
    _resized,
    _whole_0_1,
    answers,
    dialogues,
    eval_rows,
    healthy_dialogues,
    healthy_rows,
    images,
    named,
)
from tests.data.formats.layouts import lines, whole
from vpp_plugins import VPPError
from vpp_plugins.data.doctor import examine
from vpp_plugins.data.doctor.collect import Fault
from vpp_plugins.data.doctor.doctor import DoctorReport
from vpp_plugins.data.formats import read_samples
from vpp_plugins.data.record import PixelBudget

__all__ = ["images"]


def fixed(found: DoctorReport, target: Path) -> DoctorReport:
    found.cure.write(target, progress=False)
    return examine(target, found.format, images=found.folder, family=found.cure.reading.family, progress=False)


@pytest.mark.parametrize("write", [_whole_0_1, _0_1000, _pixels, _resized, _padded_xywh])
def test_boxes_in_another_frame_or_unit_are_written_as_the_family_does(
    tmp_path: Path, images: Path, write: Any
) -> None:
    found = dialogues(tmp_path, answers(write), images)
    again = fixed(found, tmp_path / "fixed.json")
    assert again.healthy
    assert again.samples == 60
    truth = read_samples(whole(tmp_path / "true.json", healthy_dialogues()), "vpp-sft", images=images)
    for mended, true in zip(read_samples(tmp_path / "fixed.json", "vpp-sft", images=images), truth, strict=True):
        assert mended.turns[0].boxes[0] == pytest.approx(true.turns[0].boxes[0], abs=2.5)


@pytest.mark.parametrize(
    ("change", "fault", "left"),
    [
        ({"bbox": [30, 20, 900, 40]}, Fault.OUT_OF_RANGE, 60),
        ({"bbox": [30, 20, 10, 5]}, Fault.INVERTED, 57),
        ({"bbox": [30, 20, 40]}, Fault.BROKEN_BOX, 57),
        ({"bbox": [0.1, 0.2, 0.5, 0.75]}, Fault.WRONG_UNIT, 57),
        ({"bbox": "[1, 2, 3, 4]"}, Fault.BAD_ROW, 57),
        ({"sent": " "}, Fault.EMPTY_TEXT, 57),
    ],
)
def test_faulty_rows_are_mended_or_left_out(
    tmp_path: Path, images: Path, change: dict[str, Any], fault: Fault, left: int
) -> None:
    rows: Rows = [row | change if number in (5, 15, 25) else row for number, row in enumerate(healthy_rows())]
    found = eval_rows(tmp_path, rows, images)
    assert named(found) == [fault]
    assert found.cure.settles(found.findings[0])
    again = fixed(found, tmp_path / "fixed.jsonl")
    assert again.healthy
    assert again.samples == left


def test_duplicates_and_images_that_break_are_left_out(tmp_path: Path, images: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "5.png").write_text("broken")
    found = eval_rows(tmp_path, [*healthy_rows(), *healthy_rows()[:3]], folder)
    assert named(found) == [Fault.DUPLICATE, Fault.UNREADABLE]
    again = fixed(found, tmp_path / "fixed.jsonl")
    assert again.healthy
    assert again.samples == 58


def test_shared_images_are_left_out(tmp_path: Path) -> None:
    test = lines(tmp_path / "test.jsonl", *healthy_rows()[:2])
    path = lines(tmp_path / "train.jsonl", *healthy_rows())
    found = examine(path, "eval-jsonl", against=test, progress=False)
    found.cure.write(tmp_path / "fixed.jsonl", progress=False)
    assert examine(tmp_path / "fixed.jsonl", "eval-jsonl", against=test, progress=False).healthy


def test_shared_images_are_left_out_where_they_get_other_names(tmp_path: Path) -> None:
    """Another image lay in the folder under their name; they were written beside it, and said to be left out."""
    pa, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "out.images").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(tmp_path / f"{name}.png")
        Image.new("RGB", (40, 30), "lime").save(tmp_path / f"out.images/{name}.png")
    rows = [
        {"question_id": name, "file_name": f"{name}.png", "answer": ["it"], "bbox": [1.0, 2.0, 8.0, 7.0],
         "image": {"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None}}
        for name in ("red", "blue")
    ]  # fmt: skip
    writer.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    test = lines(tmp_path / "test.jsonl", healthy_rows()[0] | {"image": "red.png"})
    found = examine(tmp_path / "in.parquet", "lmms-parquet", against=test, against_format="eval-jsonl", progress=False)
    assert named(found) == [Fault.LEAKAGE]
    found.cure.write(tmp_path / "out.jsonl", progress=False)
    assert [sample.image for sample in read_samples(tmp_path / "out.jsonl", "neutral")] == ["blue-2.png"]


def test_image_marks_are_mended(tmp_path: Path, images: Path) -> None:
    rows = healthy_dialogues()
    rows[3]["conversations"][0]["value"] = rows[3]["conversations"][0]["value"].replace("<image>\n", "")
    found = dialogues(tmp_path, rows, images)
    assert found.cure.change(found.findings[0]) == "put before the first question"
    assert fixed(found, tmp_path / "fixed.json").healthy


def test_what_is_not_decided_is_not_fixed(tmp_path: Path, images: Path) -> None:
    found = dialogues(tmp_path, healthy_dialogues()[:2], images)
    with pytest.raises(VPPError, match=r"is not decided, so nothing was fixed: state it, as --boxes"):
        found.cure.write(tmp_path / "fixed.json", progress=False)
    assert not (tmp_path / "fixed.json").exists()


def test_which_of_two_boxes_is_right_someone_must_decide(tmp_path: Path, images: Path) -> None:
    rows = [*healthy_rows(), healthy_rows()[0] | {"bbox": [60, 44, 64, 48]}]
    found = eval_rows(tmp_path, rows, images)
    assert named(found) == [Fault.CONFLICT]
    assert not found.cure.settles(found.findings[0])
    assert found.findings[0].fix.endswith("--out doctor.html")


def test_every_finding_ends_with_a_command_that_names_what_was_given(tmp_path: Path, images: Path) -> None:
    budget = PixelBudget(100, 10_000)
    rows = [row | {"bbox": [30, 20, 10, 5]} for row in healthy_rows()[:1]] + healthy_rows()[1:]
    path = lines(tmp_path / "a set.jsonl", *rows)
    found = examine(path, "eval-jsonl", images=images, family="internvl", pixels=budget, progress=False)
    words = shlex.split(found.findings[0].fix)
    assert str(found.findings[0]).endswith(f"Fix: {found.findings[0].fix}")
    assert words[:5] == ["vpp", "doctor", str(path), "--format", "eval-jsonl"]
    assert words[5:] == ["--images", str(images), "--family", "internvl", "--min-pixels", "100", "--max-pixels",
                         "10000", "--fix", "a set-fixed.jsonl"]  # fmt: skip


def test_no_samples_at_all_names_the_formats(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "a"}) + "\n")
    found = examine(tmp_path / "set.jsonl", "eval-jsonl", progress=False)
    assert [finding.fix for finding in found.findings if finding.fault is Fault.NO_SAMPLES] == ["vpp data formats"]
