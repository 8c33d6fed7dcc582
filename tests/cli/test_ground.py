import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Run, is_one_sentence
from tests.tiny import attached, image, tiny_processor
from vpp_plugins import save_vpp


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
            "labels": [None],
            "status": "readable",
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
            (("--image", "none"), "'none' is a folder without an image"),
            (("--image", "several", "--out", "boxed.png"), "name it .jsonl, and draw with --drawn DIR"),
            (
                ("--image", "photo.png", "--model", "mine", "--without-vpp"),
                "name the one that was trained without by --model",
            ),
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
        for folder in ("folder.png", "none", "several"):
            Path(folder).mkdir()
        image(0).save("several/a.png")

        code, out, err = vpp("ground", *words, "--expr", "the cup")

        assert (code, out) == (1, "")
        assert is_one_sentence(err)
        assert message in err
        assert pocket == []

    def test_a_folder_becomes_json_lines_and_drawn_images(self, vpp: Run, pocket: list[bool], photo: Path) -> None:
        Path("photos").mkdir()
        for number in range(10):
            image(number, (100, 100)).save(f"photos/{number}.png")
        Path("photos/notes.txt").write_text("no image")
        words = ("--image", "photos", "--expr", "the cup", "--drawn", "drawn")

        assert vpp("ground", *words, "--out", "boxes.jsonl") == (0, "10 lines: boxes.jsonl\n", "")
        lines = [json.loads(line) for line in Path("boxes.jsonl").read_text().splitlines()]
        assert [line["image"] for line in lines] == [f"photos/{number}.png" for number in range(10)]
        assert {line["status"] for line in lines} == {"readable"}
        assert sorted(path.name for path in Path("drawn").iterdir()) == [f"{number}.png.png" for number in range(10)]
        code, out, err = vpp("ground", *words)
        assert (code, err) == (0, "")
        assert [json.loads(line) for line in out.splitlines()] == lines

    def test_an_image_of_a_folder_that_cannot_be_read_is_named_and_the_others_are_asked(
        self, vpp: Run, pocket: list[bool], photo: Path
    ) -> None:
        Path("photos").mkdir()
        Path("photos/b.jpg").write_text("no image")
        image(0).save("photos/a.png")

        code, _, err = vpp("ground", "--image", "photos", "--expr", "the cup", "--out", "boxes.jsonl")

        lines = [json.loads(line) for line in Path("boxes.jsonl").read_text().splitlines()]
        assert (code, [line.get("status") for line in lines]) == (1, ["readable", None])
        assert "is not an image" in lines[1]["error"]
        assert is_one_sentence(err)
        assert "1 of 2 images could not be read: 'photos/b.jpg'" in err

    @pytest.mark.usefixtures("toy")
    def test_a_model_of_ones_own_with_its_prompts(self, vpp: Run, photo: Path, tmp_path: Path) -> None:
        model, _ = attached()
        model.save_pretrained("host")
        tiny_processor().save_pretrained("host")
        save_vpp(model, "prompts")
        (tmp_path / "host" / "vpp_config.json").unlink()  # beside the host it would be found by itself

        code, out, err = vpp("ground", "--model", "host", "--vpp", "prompts", "--image", photo, "--expr", "the cup")

        assert code == 0, err
        assert json.loads(out)["text"]

    def test_a_model_that_is_none_ends_in_one_sentence(self, vpp: Run, photo: Path) -> None:
        code, _, err = vpp("ground", "--model", "no/folder/here", "--image", photo, "--expr", "the cup")

        assert code == 1
        assert is_one_sentence(err)
        assert "'no/folder/here' could not be loaded" in err

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
