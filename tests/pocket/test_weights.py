import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins import Grounder, VPPProcessor, attach_vpp, detach_vpp, is_attached
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.pocket.weights import (
    BACKBONE_PREFIXES,
    load_pocket,
    save_pocket,
)

Pocket = tuple[LlavaForConditionalGeneration, LlavaProcessor]
DETECTOR = {"backbone": "efficientnet_lite0", "width": 32, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 32}


@pytest.fixture(scope="module")
def folder(pocket: Pocket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both arms of the tiny model, as examples/pocket.py writes them; both backbones hold the same weights."""
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
    state = model.state_dict()
    tower, detector = BACKBONE_PREFIXES
    with torch.no_grad():
        for name, value in state.items():
            if name.startswith(detector):
                value.copy_(state[tower + name.removeprefix(detector)])
    save_pocket(model, processor.tokenizer, path)
    detach_vpp(model)
    return path


def test_weights_of_0_1_0_have_matrices_in_int8_with_a_scale_for_each_row(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "plain.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    matrix = tensors.pop(name).float()
    scale = (matrix.abs().amax(1, keepdim=True) / 127).half()
    tensors |= {name: (matrix / scale.float()).round().clamp(-127, 127).to(torch.int8), f"{name}@scale": scale}
    save_file(tensors, tmp_path / "plain.safetensors")
    (tmp_path / "manifest.json").unlink()  # it had none either

    loaded = load_pocket(False, tmp_path)[0].state_dict()[name]

    error = (loaded - matrix).abs().amax(1)
    assert (error <= matrix.abs().amax(1) * 0.006).all()


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


def test_both_backbones_are_filled_from_one_file(folder: Path) -> None:
    model, _ = load_pocket(True, folder)
    state = model.state_dict()
    tower, detector = BACKBONE_PREFIXES
    places = [name for name in state if name.startswith(detector)]

    assert places
    assert all(torch.equal(state[name], state[tower + name.removeprefix(detector)]) for name in places)


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
    with pytest.raises(VPPError, match=r"folder must be the path of a folder, but is None\."):
        load_pocket(folder=None)  # type: ignore[arg-type]


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
