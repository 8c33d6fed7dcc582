from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.data.formats import layouts
from tests.data.formats.layouts import image, lines, whole
from vpp_plugins.cli.doctor import doctor

RUNNER = CliRunner()
DOCTOR = typer.Typer()
DOCTOR.command()(doctor)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_doctor_ends_with_1_where_something_was_found() -> None:
    image(Path("images/coco/train2017/000000033471.jpg"))
    whole(Path("set.json"), layouts.LLAVA_665K[:1])
    words = ["set.json", "--format", "vpp-sft", "--images", "images", "--boxes", "0-1,padded"]
    healthy = RUNNER.invoke(DOCTOR, words)
    assert healthy.exit_code == 0, healthy.output
    assert "Nothing was found." in healthy.output

    Path("images/coco/train2017/000000033471.jpg").write_text("broken")
    ill = RUNNER.invoke(DOCTOR, [*words, "--out", "page.html"])
    assert ill.exit_code == 1
    assert "- unreadable images: 1 of 1 (100.0%)" in ill.output
    assert Path("page.html").exists()


def test_fix_writes_what_is_mended_and_ends_with_0() -> None:
    rows = [{**layouts.EVALUATION, "image": f"{n}.jpg", "bbox": [n, 96, 320 + n, 384]} for n in range(40)]
    lines(Path("set.jsonl"), *rows, rows[0], {**rows[1], "bbox": [1, 2]})
    words = ["set.jsonl", "--format", "eval-jsonl"]
    ill = RUNNER.invoke(DOCTOR, words)
    assert ill.exit_code == 1
    assert "Fix: vpp doctor set.jsonl --format eval-jsonl --fix set-fixed.jsonl" in ill.output

    done = RUNNER.invoke(DOCTOR, [*words, "--fix", "set-fixed.jsonl"])
    assert done.exit_code == 0, done.output
    assert "40 samples, 40 turns, 40 boxes in set-fixed.jsonl" in done.output
    assert "- duplicate samples: the first of each stays" in done.output
    assert "Nothing was found." in RUNNER.invoke(DOCTOR, ["set-fixed.jsonl", *words[1:]]).output


def test_fix_ends_with_1_where_someone_must_decide() -> None:
    rows = [{**layouts.EVALUATION, "image": f"{n}.jpg", "bbox": [n, 96, 320 + n, 384]} for n in range(40)]
    lines(Path("set.jsonl"), *rows, {**rows[0], "bbox": [600, 400, 640, 480]})
    done = RUNNER.invoke(DOCTOR, ["set.jsonl", "--format", "eval-jsonl", "--fix", "set-fixed.jsonl"])
    assert done.exit_code == 1
    assert "- conflicting samples: nothing: someone must decide" in done.output
    assert Path("set-fixed.jsonl").exists()


def test_undecided_ends_with_1_and_not_with_nothing_found() -> None:
    image(Path("images/coco/train2017/000000033471.jpg"))
    whole(Path("set.json"), layouts.LLAVA_665K[:1])
    asked = RUNNER.invoke(DOCTOR, ["set.json", "--format", "vpp-sft", "--images", "images"])
    assert asked.exit_code == 1
    assert "The numbers do not decide; state how they are written: --boxes" in asked.output
    assert "Nothing was found" not in asked.output
