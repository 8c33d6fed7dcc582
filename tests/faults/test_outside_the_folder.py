"""No reader takes an image from outside its folder, and no writer goes through a link."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.commands import vpp
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.scenes import Shapes, load_scenes, write_scenes
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.rows import rows_of_folder

NAMES = [
    "../secret.png",
    "/etc/secret.png",
    "images/../../secret.png",
    "..\\secret.png",
    "C:\\secret.png",
    "a\0b.png",
    "",
]


def scene_folder(tmp_path: Path, name: str) -> Path:
    folder = write_scenes(tmp_path / "scenes", 1, 0, "train", source=Shapes(), size=96, progress=False)
    Image.new("RGB", (96, 96), "red").save(tmp_path / "secret.png")
    record = json.loads((folder / "scenes.jsonl").read_text())
    (folder / "scenes.jsonl").write_text(json.dumps({**record, "image": name}) + "\n")
    return folder


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_scene_is_not_read_from_outside(tmp_path: Path, name: str) -> None:
    folder = scene_folder(tmp_path, name)
    with pytest.raises(VPPError, match="below its folder"):
        rows_of_folder(load_scenes(folder))
    with pytest.raises(VPPError, match="below its folder"):
        load_scenes(folder)[0]
    with pytest.raises(VPPError, match="below its folder"):
        list(read_samples(folder, "scenes", reading=Reading()))


@pytest.mark.parametrize(
    ("file", "text"),
    [("manifest.json", "[]"), ("manifest.json", "{"), ("manifest.json", "[" * 5000), ("manifest.json", "\udc80"),
     ("scenes.jsonl", "7\n"), ("scenes.jsonl", "{"), ("scenes.jsonl", "[" * 5000), ("scenes.jsonl", '{"image": 7}')],
)  # fmt: skip
def test_a_damaged_scene_folder_is_refused_in_a_sentence(tmp_path: Path, file: str, text: str) -> None:
    folder = scene_folder(tmp_path, "images/000000.jpg")
    (folder / file).write_bytes(text.encode(errors="surrogateescape"))
    ended = vpp("data", "convert", folder, tmp_path / "out", "--from", "scenes", "--to", "neutral")
    assert ended.code == 1
    assert "Traceback" not in ended.complained


@pytest.mark.parametrize("linked", [".scenes-partial", ".scenes-partial/scenes", ".scenes-partial/scenes/images"])
def test_scenes_are_not_written_through_a_link(tmp_path: Path, linked: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / linked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VPPError, match="is a link"):
        write_scenes(tmp_path / "scenes", 1, 0, "train", source=Shapes(), size=96, progress=False)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_scene_takes_the_place_of_a_link(tmp_path: Path) -> None:
    image = tmp_path / ".scenes-partial/scenes/images/000000.jpg"
    image.parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("kept")
    image.symlink_to(tmp_path / "precious")
    write_scenes(tmp_path / "scenes", 1, 0, "train", source=Shapes(), size=96, progress=False)
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("words", [("demo", "--out"), ("ground", "--expr", "cup", "--image", "a.png", "--drawn")])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_a_folder_s_place_is_a_sentence(
    words: tuple[str, ...], below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "File exists"."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96)).save("a.png")
    ended = vpp(*words, Path("a.png", below))
    assert (ended.code, "a.png" in ended.complained) == (1, True)
    assert "is no folder, where one is needed: name another place" in ended.complained


def test_a_conversion_takes_the_place_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "precious")
    (tmp_path / "in.jsonl").write_text(json.dumps({"turns": [{"ask": "What?", "answer": "That."}]}))
    words = ["--from", "neutral", "--to", "neutral", "--overwrite"]
    ended = vpp("data", "convert", tmp_path / "in.jsonl", tmp_path / "out.jsonl", *words)
    assert ended.code == 0
    assert (tmp_path / "precious").read_text() == "kept"
