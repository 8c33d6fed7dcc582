"""A host whose files lack a part is refused: transformers puts random numbers there, and says so in its log alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families import FAMILIES
from vpp_plugins import VPPError
from vpp_plugins.evaluate import load_pretrained

WEIGHTS = "model.safetensors"


def save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def shard(folder: Path) -> dict[str, str]:
    """Cut the weights in two, and return what the index is to say."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names: dict[str, str] = {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        names |= dict.fromkeys(list(tensors)[part::2], file)
        save({name: tensors[name] for name in list(tensors)[part::2]}, folder / file)
    return names


def index(folder: Path, names: dict[str, str], *, most: int | None = None) -> None:
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    (folder / "model.safetensors.index.json").write_text(text[:most])


def half_an_index(folder: Path) -> None:
    index(folder, {name: file for name, file in shard(folder).items() if file.startswith("model-00001")})


def a_shard_gone(folder: Path) -> None:
    index(folder, shard(folder))
    (folder / "model-00002-of-00002.safetensors").unlink()


def a_shard_cut(folder: Path) -> None:
    index(folder, shard(folder))
    cut(folder, "model-00002-of-00002.safetensors")


def cut(folder: Path, name: str = WEIGHTS) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def change(folder: Path, of: Callable[[str, Tensor], Tensor | None]) -> None:
    changed = {name: of(name, value) for name, value in load_file(folder / WEIGHTS).items()}
    save({name: value for name, value in changed.items() if value is not None}, folder / WEIGHTS)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a tensor gone": (
        lambda f: change(f, lambda name, v: None if "q_proj" in name else v),
        r"lack \d+ weights .*q_proj",
    ),
    "another shape": (
        lambda f: change(f, lambda name, v: torch.cat([v, v]) if "norm" in name else v),
        r"lack \d+ weig",
    ),
    "other names": (lambda f: change(f, lambda name, v: None), r"lack \d+ weights .* would be random"),
    "half an index": (half_an_index, r"lack \d+ weights .* would be random"),
    "an index cut": (lambda f: index(f, shard(f), most=200), "could not be loaded"),
    "a shard gone": (a_shard_gone, "could not be loaded .*00002"),
    "a shard cut": (a_shard_cut, "could not be loaded .*header"),
    "cut": (cut, "could not be loaded .*header"),
    "no configuration": (lambda f: (f / "config.json").write_text("[]"), "could not be loaded"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("host")
    FAMILIES["llava"].model().save_pretrained(folder)
    FAMILIES["llava"].processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_to_a_host_is_a_sentence(damage: str, whole: Path, tmp_path: Path) -> None:
    act, said = DAMAGES[damage]
    shutil.copytree(whole, tmp_path / "host")
    act(tmp_path / "host")
    with pytest.raises(VPPError, match=said):
        load_pretrained(str(tmp_path / "host"))


def test_in_shards_it_loads(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "host")
    index(tmp_path / "host", shard(tmp_path / "host"))
    (one, _), (other, _) = load_pretrained(str(whole)), load_pretrained(str(tmp_path / "host"))

    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
