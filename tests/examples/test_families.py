"""The families' examples, as a reader would run them without a checkpoint."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples/families"
PRINTED = {
    "llava": [
        "all of an image of 384 x 288 pixels, as LLaVA writes it: [0.0, 0.12, 1.0, 0.88]",
        "and back, in pixels of the image: ((0.0, 0.0, 384.0, 288.0),)",
        "the answer is ",
    ],
    "llava_next": [
        "the whole view and the tiles, in units of the padded square:",
        "  x 0.00 to 1.00, y 0.12 to 0.88",
        "  x 0.00 to 0.50, y 0.00 to 0.50",
        "the answer is ",
    ],
    "qwen_vl": [
        'qwen3-vl: [{"bbox_2d": [250, 250, 500, 500], "label": "dog"}]',
        "trainable params: ",
        "loss ",
        "the answer is ",
    ],
    "internvl": [
        "<ref>the left half</ref><box>[[0, 0, 500, 1000]]</box>",
        "the tiles, row by row, and the thumbnail, in units of the image:",
        "  x 0.50 to 1.00, y 0.00 to 0.50",
        "  x 0.00 to 1.00, y 0.00 to 1.00",
        "the answer is ",
    ],
}


@pytest.mark.parametrize("name", list(PRINTED))
@pytest.mark.filterwarnings("ignore:the attached VPP is untrained")
def test_the_example_runs_on_a_tiny_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])

    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")

    lines = iter(capsys.readouterr().out.splitlines())
    for expected in PRINTED[name]:  # in this order, with others between them
        assert any(line.startswith(expected) for line in lines), expected
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == ({"README.md", "vpp_config.json", "vpp.safetensors"} if name == "qwen_vl" else set())


def test_every_example_is_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*PRINTED, "tiny_hosts"}
