"""`vpp data convert`, `vpp data build-vpp-sft`, `vpp data formats`, and the function behind `vpp doctor`."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.data.formats import layouts
from tests.data.formats.layouts import image, lines, refer_folder, whole
from vpp_plugins.cli.data import data, doctor
from vpp_plugins.data.formats import FORMATS

RUNNER = CliRunner()
DOCTOR = typer.Typer()
DOCTOR.command()(doctor)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_convert_says_what_it_wrote_and_what_it_met() -> None:
    refer_folder(Path("refcoco"))
    words = ["convert", "refcoco", "val.jsonl", "--from", "refer", "--to", "eval-jsonl", "--split", "testA"]
    found = RUNNER.invoke(data, words)
    assert found.exit_code == 0, found.output
    assert "2 samples, 2 turns, 2 boxes in val.jsonl" in found.output
    assert "1 x count differs from the published one: testA: 2 sentences, published 5,657" in found.output
    assert [json.loads(line)["sent"] for line in Path("val.jsonl").read_text().splitlines()] == ["white cup", "cup"]


def test_build_compares_the_counts_with_the_published_ones() -> None:
    lines(Path("g.jsonl"), layouts.GENIXER)
    found = RUNNER.invoke(data, ["build-vpp-sft", "out.json", "--genixer", "g.jsonl"])
    assert found.exit_code == 0, found.output
    assert "1 dialogues, published   130,000  differs by -129,999" in found.output
    assert len(json.loads(Path("out.json").read_text())) == 1


def test_formats_lists_all() -> None:
    found = RUNNER.invoke(data, ["formats"])
    assert [line.split()[0] for line in found.output.splitlines()] == list(FORMATS)


def test_doctor_ends_with_1_where_something_was_found() -> None:
    image(Path("images/coco/train2017/000000033471.jpg"))
    whole(Path("set.json"), layouts.LLAVA_665K[:1])
    words = ["set.json", "--format", "vpp-sft", "--images", "images"]
    healthy = RUNNER.invoke(DOCTOR, words)
    assert healthy.exit_code == 0, healthy.output
    assert "Nothing was found." in healthy.output

    Path("images/coco/train2017/000000033471.jpg").write_text("broken")
    ill = RUNNER.invoke(DOCTOR, [*words, "--out", "page.html"])
    assert ill.exit_code == 1
    assert "- unreadable images: 1 of 1 (100.0%)" in ill.output
    assert Path("page.html").exists()
