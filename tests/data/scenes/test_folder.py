import io
import json
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from vpp_plugins.data.scenes.folder import load_scenes, write_scenes
from vpp_plugins.data.scenes.generator import SCENES_VERSION, SceneGenerator
from vpp_plugins.data.scenes.shapes import Shapes
from vpp_plugins.data.scenes.source import Cutout
from vpp_plugins.errors import VPPError

COUNT = 120


def write(out: Path, **changes: object) -> Path:
    return write_scenes(out, **{"count": COUNT, "seed": 3, "split": "val", "source": Shapes(), "size": 96} | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scenes") / "val", progress=False)


def test_what_is_read_is_what_was_made(written: Path) -> None:
    scenes = load_scenes(written)
    make = SceneGenerator(Shapes(), split="val", seed=3, size=96)
    assert len(scenes) == COUNT
    for index in (0, 57, -1):
        made, read = make.scene(index % COUNT), scenes[index]
        assert (read.key, read.width, read.height) == (made.key, 96, 96)
        assert read.objects == made.objects
        assert read.expressions == made.expressions
        stored = io.BytesIO()
        made.image.save(stored, format="JPEG", quality=92)
        assert read.image.tobytes() == Image.open(stored).tobytes()
    assert [scene.key for scene in scenes[:2]] == ["val-3-000000", "val-3-000001"]


def test_the_files_follow_the_neutral_schema(written: Path) -> None:
    assert len(list((written / "images").glob("*.jpg"))) == COUNT
    record = json.loads((written / "scenes.jsonl").read_text().splitlines()[5])
    assert record["image"] == "images/000005.jpg"
    assert {"name", "box_xyxy"} <= set(record["objects"][0])
    assert set(record["expressions"][0]) == {"text", "box_xyxy", "kind", "object"}
    manifest = json.loads((written / "manifest.json").read_text())
    expected = {"scenes_version": SCENES_VERSION, "source": "shapes", "split": "val", "seed": 3, "size": 96}
    assert expected.items() <= manifest.items()


def test_other_processes_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    assert contents(write(tmp_path / "again", workers=2, progress=False)) == contents(written)


class Dying(Shapes):
    """Draws so many images and is then killed."""

    def __init__(self, images: int) -> None:
        self.left = images

    def render(self, cutout: Cutout, longest_side: int) -> Image.Image:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().render(cutout, longest_side)


def test_a_killed_run_continues_to_the_same_bytes(written: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "val", source=Dying(400), progress=False)
    assert not (tmp_path / "val").exists()
    finished = list((tmp_path / ".val-partial" / "lines").iterdir())
    assert finished
    before = {path: path.stat().st_mtime_ns for path in finished}
    with pytest.raises(VPPError, match=r"seed=3, not 4.*delete"):
        write(tmp_path / "val", seed=4, progress=False)

    class Counting(Shapes):
        renders = 0

        def render(self, cutout: Cutout, longest_side: int) -> Image.Image:
            Counting.renders += 1
            return super().render(cutout, longest_side)

    assert contents(write(tmp_path / "val", source=Counting(), progress=False)) == contents(written)
    assert Counting.renders < 700, "finished scenes were drawn again"
    assert before
    assert [path.name for path in tmp_path.iterdir()] == ["val"], "no partial folder stays behind"


def test_a_complete_folder_is_left_as_it_is(written: Path, capfd: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert write(written) == written
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == times
    with pytest.raises(VPPError, match="size=96, not 128"):
        write(written, size=128)


def test_the_bar_shows_the_scenes_on_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    write(tmp_path / "few", count=2)
    assert capfd.readouterr().out == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    write(tmp_path / "again", count=2)
    assert "Scenes" in capfd.readouterr().out


def test_foreign_and_broken_folders_are_explained(written: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(VPPError, match="holds no scenes"):
        write(tmp_path, progress=False)
    with pytest.raises(VPPError, match="write_scenes"):
        load_scenes(tmp_path)
    (tmp_path / "manifest.json").write_bytes((written / "manifest.json").read_bytes())
    lines = (written / "scenes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "scenes.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(VPPError, match="lists 119"):
        load_scenes(tmp_path)
    with pytest.raises(VPPError, match="at least 1"):
        write(tmp_path / "none", count=0)


@pytest.mark.parametrize(
    ("split", "digest"),
    [
        ("train", "b6507f2ff8f53fbb"),
        ("val", "51110d5169c27057"),
        ("test", "57fcee38274c76dc"),
        ("heldout", "515cee10e4c345cc"),
    ],
)
def test_the_splits_of_version_1_keep_their_lines(split: str, digest: str, tmp_path: Path) -> None:
    """Pinned before expressions could have several boxes. The images' hashes are left out: they are Pillow's too."""
    folder = write(tmp_path / split, count=4, seed=0, split=split, progress=False)
    rows = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    lines = [json.dumps({key: value for key, value in row.items() if key != "sha256"}) for row in rows]
    assert sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


def test_scenes_of_sets_read_back_as_they_were_made(tmp_path: Path) -> None:
    folder = write(tmp_path / "sets", count=4, seed=0, split="sets", progress=False)
    make = SceneGenerator(Shapes(), split="sets", seed=0, size=96)
    assert [scene.expressions for scene in load_scenes(folder)] == [make.scene(index).expressions for index in range(4)]
