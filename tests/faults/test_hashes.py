"""Kind 5, the rest: one flipped bit of scenes, of the pocket model, of a run's end, of GRPO's checkpoints is named."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.faults.damage import delete, files_of, flip
from vpp_plugins import VPPError
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.data.scenes import Shapes, load_scenes, write_scenes
from vpp_plugins.evaluate.benchmark import load_rows
from vpp_plugins.evaluate.models import load_grounder
from vpp_plugins.files import sealed, unsealed, write_manifest
from vpp_plugins.pocket import FOLDER, load_pocket
from vpp_plugins.train import Recipe
from vpp_plugins.train.checkpoints import check_files
from vpp_plugins.train.model import load_host


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "scenes"
    return write_scenes(folder, 3, 0, "val", source=Shapes(), size=96, progress=False)


READERS: list[Callable[[Path], Any]] = [
    load_scenes,
    lambda folder: load_rows(str(folder)),
    lambda folder: list(read_samples(folder, "scenes", reading=Reading())),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["scenes.jsonl", "images/000001.jpg"])
def test_a_bit_of_a_scene_folder(name: str, seed: int, scenes: Path, tmp_path: Path) -> None:
    """A JPEG with one bit flipped is another image, and a true box with one bit flipped another box."""
    shutil.copytree(scenes, tmp_path / "copy")
    flip(tmp_path / "copy" / name, [], random.Random(seed))
    for read in READERS:
        with pytest.raises(VPPError, match=f"{name}' (was changed since it was written|is not valid JSON)"):
            read(tmp_path / "copy")


def test_scenes_without_hashes_are_read_with_one_warning(scenes: Path, tmp_path: Path) -> None:
    """As 0.1.0 wrote them. Where the manifest alone has lost its own, or its name, it is damaged."""
    shutil.copytree(scenes, tmp_path / "copy")
    manifest, lines = tmp_path / "copy" / "manifest.json", tmp_path / "copy" / "scenes.jsonl"
    without = "\n".join(line for line in manifest.read_text().splitlines() if "sha256" not in line)[:-3] + "\n}"
    for damaged in (without, manifest.read_text().replace("scenes_sha256", "scenes_sha257")):
        manifest.write_text(damaged)
        with pytest.raises(VPPError, match=r"scenes\.jsonl' was changed since it was written"):
            load_scenes(tmp_path / "copy")
    manifest.write_text(without)
    lines.write_text(lines.read_text().replace('"sha256"', '"other"'))
    with pytest.warns(UserWarning, match=r"no SHA-256 of its scenes, as version 0\.1\.0 wrote none") as warned:
        assert len(load_scenes(tmp_path / "copy")) == 3
    assert len(warned) == 1


@pytest.mark.parametrize("name", ["backbone.safetensors", "vpp.safetensors", "plain.safetensors"])
def test_a_bit_of_the_pocket_model(name: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "pocket")
    flip(tmp_path / "pocket" / name, [], random.Random(name))
    with pytest.raises(VPPError, match=rf"{name}' was changed since it was saved"):
        load_pocket(vpp=name != "plain.safetensors", folder=tmp_path / "pocket")


def test_the_shipped_weights_are_those_of_their_manifest() -> None:
    import json

    named = json.loads((FOLDER / "manifest.json").read_text())["files"]
    assert sorted(named) == [path.name for path in files_of(FOLDER) if path.name != "manifest.json"]


@pytest.fixture
def final(tmp_path: Path) -> Path:
    folder = tmp_path / "final"
    folder.mkdir()
    save_file({"weight": torch.arange(64.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("damage", [flip, delete])
def test_a_bit_of_what_a_run_ended_with(damage: Callable[..., None], final: Path) -> None:
    """For `vpp eval --model RUN/final`, and for a recipe that goes on from it."""
    damage(final / "model.safetensors", [], random.Random(0))
    for load in (
        lambda: load_grounder(str(final)),
        lambda: load_host(Recipe(model=str(final), data="", output_dir="")),
    ):
        with pytest.raises(VPPError, match=r"model.safetensors' (was changed since it was saved|is missing)"):
            load()


def test_settings_of_what_a_run_ended_with_may_be_edited(final: Path) -> None:
    (final / "config.json").write_text('{"edited": true}')
    (final / "adapter.safetensors").write_bytes(b"merged later")
    with pytest.raises(VPPError, match="could not be loaded as an image-text-to-text model"):
        load_grounder(str(final))


def test_a_bit_of_a_grpo_checkpoint(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are written by TRL and read by transformers, neither of which looks."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    from vpp_plugins.train.grpo import VPPGRPOTrainer

    class Waiting:
        args = property(lambda self: type("Args", (), {"should_save": True, "output_dir": str(final.parent)}))
        state = type("State", (), {"global_step": 3})
        accelerator = type("Accelerator", (), {"wait_for_everyone": staticmethod(lambda: None)})

    saved = final.parent / "checkpoint-3"
    trainer: Any = type("Trainer", (Waiting, VPPGRPOTrainer), {"__init__": lambda self: None})()
    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", lambda self, model, trial: shutil.copytree(final, saved))
    loaded: list[str] = []
    monkeypatch.setattr(GRPOTrainer, "_load_from_checkpoint", lambda self, folder, model=None: loaded.append(folder))
    trainer._save_checkpoint(None, None)
    trainer._load_from_checkpoint(str(saved))
    assert loaded == [str(saved)]
    flip(saved / "model.safetensors", [], random.Random(0))
    with pytest.raises(VPPError, match=r"model.safetensors' was changed since it was saved"):
        trainer._load_from_checkpoint(str(saved))
    with pytest.raises(VPPError, match="was changed since it was saved"):
        check_files(saved)


def test_a_seal_under_another_name_is_missed() -> None:
    """One flipped bit in the name of the digest made a file one of 0.1.0, which has none, and its values unchecked."""
    values = sealed({"a": 1}, "a run")
    for renamed in ({**values, "a": 2}, {key.replace("sha256", "sha257"): value for key, value in values.items()}):
        with pytest.raises(ValueError, match=r"were changed|digest is missing"):
            unsealed(renamed, "a run")
    assert unsealed({"a": 1}, "a run") == {"a": 1} == unsealed(values, "a run")
