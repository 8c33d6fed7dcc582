from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.data.formats import layouts
from tests.data.formats.layouts import image, whole
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
