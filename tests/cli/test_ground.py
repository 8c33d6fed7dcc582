import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Run, is_one_sentence


class TestGround:
    def test_prints_the_boxes_as_json_and_draws_them(self, vpp: Run, pocket: list[bool], photo: Path) -> None:
        code, out, err = vpp("ground", "--image", photo, "--expr", "the cup", "--out", "boxed.png")

        assert (code, err) == (0, "")
        assert json.loads(out) == {
            "image": str(photo),
            "width": 100,
            "height": 100,
            "expression": "the cup",
            "boxes": [[10, 20, 30, 40]],
            "status": "ok",
            "text": "[0.1, 0.2, 0.3, 0.4]",
        }
        with Image.open("boxed.png") as boxed, Image.open(photo) as before:
            assert boxed.size == (100, 100)
            assert boxed.tobytes() != before.tobytes()
        assert pocket == [True]

    def test_can_ask_the_twin(self, vpp: Run, pocket: list[bool], photo: Path) -> None:
        assert vpp("ground", "--image", photo, "--expr", "cup", "--without-vpp")[0] == 0
        assert pocket == [False]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--image", "missing.jpg"), "'missing.jpg' does not exist"),
            (("--image", "."), "'.' is a folder"),
            (("--image", "text.jpg"), "is not an image"),
            (("--image", "empty.jpg"), "is empty"),
            (("--image", "short.png"), "damaged or truncated"),
            (("--image", "tiny.png"), "is 1 x 1 pixels"),
            (("--image", "photo.png", "--out", "boxed"), "name it .png or .jpg"),
            (("--image", "photo.png", "--out", "boxed.psd"), "name it .png or .jpg"),
            (("--image", "photo.png", "--out", "no/where/boxed.png"), "'no/where' does not exist"),
            (("--image", "photo.png", "--out", "folder.png"), "'folder.png' is a folder"),
        ],
    )
    def test_bad_input_ends_in_one_sentence_before_any_model_is_loaded(
        self, vpp: Run, pocket: list[bool], photo: Path, words: Sequence[str], message: str
    ) -> None:
        Path("text.jpg").write_text("no image")
        Path("empty.jpg").touch()
        Path("short.png").write_bytes(photo.read_bytes()[:500])
        Image.new("L", (1, 1)).save("tiny.png")
        Path("folder.png").mkdir()

        code, out, err = vpp("ground", *words, "--expr", "the cup")

        assert (code, out) == (1, "")
        assert is_one_sentence(err)
        assert message in err
        assert pocket == []

    def test_a_place_that_may_not_be_written_is_refused(
        self, vpp: Run, pocket: list[bool], photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)  # root would be let through

        code, _, err = vpp("ground", "--image", photo, "--expr", "cup", "--out", "boxed.png")

        assert code == 1
        assert is_one_sentence(err)
        assert "'boxed.png' may not be written" in err

    def test_an_empty_expression_is_refused(self, vpp: Run, pocket: list[bool], photo: Path) -> None:
        code, _, err = vpp("ground", "--image", photo, "--expr", " ")

        assert code == 1
        assert is_one_sentence(err)
        assert "the expression is empty" in err

    def test_a_full_disk_ends_in_one_sentence(
        self, vpp: Run, pocket: list[bool], photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device", "boxed.png")

        monkeypatch.setattr(Image.Image, "save", full)

        code, _, err = vpp("ground", "--image", photo, "--expr", "cup", "--out", "boxed.png")

        assert (code, err) == (1, "vpp: No space left on device: boxed.png\n")
