import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins import Grounder, VPPProcessor, attach_vpp, detach_vpp, is_attached
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.pocket import load_pocket, save_pocket

Pocket = tuple[LlavaForConditionalGeneration, LlavaProcessor]
DETECTOR = {"backbone": "efficientnet_lite0", "width": 32, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 32}


@pytest.fixture(scope="module")
def folder(pocket: Pocket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both arms of the tiny model, as examples/pocket.py writes them."""
    model, processor = pocket
    path = tmp_path_factory.mktemp("weights")
    save_pocket(model, processor.tokenizer, path)
    local = LocalVPPConfig(num_queries=3, generator_options=DETECTOR, image_size=64, projector_size=32)
    attach_vpp(
        model,
        VPPConfig(
            global_vpp=GlobalVPPConfig(size=64, border=6, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD),
            local_vpp=local,
        ),
    )
    save_pocket(model, processor.tokenizer, path)
    detach_vpp(model)
    return path


@pytest.mark.parametrize("vpp", [True, False])
def test_an_arm_loads_in_float32_and_answers(folder: Path, vpp: bool) -> None:
    model, processor = load_pocket(vpp, folder)

    assert is_attached(model) is vpp
    assert isinstance(processor, VPPProcessor) is vpp
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    answer = Grounder(model, processor, max_new_tokens=3)(Image.new("RGB", (70, 50)), "the cup")
    assert answer.expression == "the cup"


def test_loading_what_was_loaded_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """Rounding happens once, so weights may be saved again and again."""
    once, processor = load_pocket(False, folder)
    save_pocket(once, processor.tokenizer, tmp_path)
    twice, _ = load_pocket(False, tmp_path)

    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value), name


def test_both_arms_have_the_one_backbone_and_float16_files(folder: Path) -> None:
    files = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert {value.dtype for held in files.values() for value in held.values() if value.is_floating_point()} == {
        torch.float16
    }
    assert not [
        name for name in (*files["vpp.safetensors"], *files["plain.safetensors"]) if "vision_tower.backbone" in name
    ]

    for vpp in (True, False):
        tower: Any = load_pocket(vpp, folder)[0].model.vision_tower
        state = tower.backbone.state_dict()
        assert state.keys() == files["backbone.safetensors"].keys()
        assert all(
            torch.equal(value.float(), state[name].float()) for name, value in files["backbone.safetensors"].items()
        )


@pytest.mark.parametrize("name", ["tokenizer.json", "pocket.json", "plain.safetensors", "backbone.safetensors"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(VPPError, match=f"the pocket model's '{name}' is missing"):
        load_pocket(False, tmp_path)


@pytest.mark.parametrize("vpp", ["weights", 1, None])
@pytest.mark.usefixtures("unchecked")
def test_a_vpp_that_is_no_bool_is_refused(vpp: Any) -> None:
    """A folder in its place meant vpp=True without a word."""
    with pytest.raises(VPPError, match=rf"vpp must be True or False, but is {vpp!r}"):
        load_pocket(vpp)
    with pytest.raises(VPPError, match=r"folder must be the path of a folder, but is 3\."):
        load_pocket(folder=3)  # type: ignore[arg-type]


def test_weights_of_other_sizes_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    sizes = (tmp_path / "pocket.json").read_text()
    (tmp_path / "pocket.json").write_text(sizes.replace('"layers": 2', '"layers": 3'))

    with pytest.raises(VPPError, match=r"weight file does not fit: .*missing.*Install the library again"):
        load_pocket(False, tmp_path)


def test_a_damaged_file_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "plain.safetensors").write_bytes(b"no weights")

    with pytest.raises(VPPError, match=r"plain\.safetensors' is damaged"):
        load_pocket(False, tmp_path)
