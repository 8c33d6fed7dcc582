"""The shipped weights: the frozen backbone, and one file per arm for all else.

backbone.safetensors   EfficientNet-Lite0 (ImageNet), float16
plain.safetensors      the arm without VPP, float16
vpp.safetensors        the arm with VPP, likewise; its prompts' tensors start with "vpp."
pocket.json            sizes of the language model
vpp_config.json        what was attached
tokenizer*.json, chat_template.jinja
manifest.json          sizes and SHA-256 of all of them

The frozen detector's weights lie in its own package; vpp_config.json has their SHA-256.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vpp_plugins.attach import attach_vpp, is_attached
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.files import check_tensors, check_weights_listed, read_safetensors, write_manifest
from vpp_plugins.pocket.build import build_pocket
from vpp_plugins.processor import VPPProcessor

FOLDER = Path(__file__).with_name("weights")
BACKBONE = "model.vision_tower.backbone."
BACKBONE_FILE = "backbone.safetensors"
WHOSE = "the pocket model"


def load_arm(vpp: bool, folder: str | Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor | VPPProcessor]:
    """Return an arm of the pocket model, as `load_pocket` does."""
    weights, backbone = read_shipped(folder, arm_file(vpp)), load_backbone(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shipped_file(folder, "tokenizer.json").parent)
    sizes = json.loads(shipped_file(folder, "pocket.json").read_text(encoding="utf-8"))
    host, processor = build_pocket(tokenizer, **sizes)
    if not vpp:
        _load(host, weights, backbone)
        return host, processor
    model: Any = attach_vpp(host, VPPConfig.load(shipped_file(folder, "vpp_config.json")))
    _load(model, weights, backbone)
    model.vpp.trained = True
    return host, VPPProcessor(processor, model)


def save_pocket(model: Any, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write one arm, the one with VPP where it is attached; the backbone must be the same in both, as it is frozen.

    `tokenizer` is the host's, without `<|vpp|>`. A detector whose package has its weights is named by their SHA-256.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: _half(value) for name, value in model.state_dict().items() if not name.startswith("lm_head.")}
    backbone = {name.removeprefix(BACKBONE): state.pop(name) for name in list(state) if name.startswith(BACKBONE)}
    attached = is_attached(model)
    save_file(state, folder / arm_file(attached))
    save_file(backbone, folder / BACKBONE_FILE)
    text = model.config.text_config
    sizes = {
        "image_size": model.config.vision_config.image_size,
        "hidden_size": text.hidden_size,
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "intermediate_size": text.intermediate_size,
    }
    (folder / "pocket.json").write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    if attached:
        model.vpp.config.save(folder / "vpp_config.json")
    write_manifest(folder)


def load_backbone(folder: str | Path = FOLDER) -> dict[str, Tensor]:
    """Return the shipped backbone, ImageNet's weights rounded to float16, in float32, by `create_backbone`'s names."""
    return read_shipped(folder, BACKBONE_FILE)


def _half(value: Tensor) -> Tensor:
    return value.detach().to(torch.float16).contiguous() if value.is_floating_point() else value.detach().clone()


def _load(model: nn.Module, weights: dict[str, Tensor], backbone: Mapping[str, Tensor]) -> None:
    """Fill the model: the backbone where it is, the language model's head with its embeddings."""
    state = model.state_dict()
    weights |= {BACKBONE + name: value for name, value in backbone.items()}
    weights["lm_head.weight"] = weights.get("model.language_model.embed_tokens.weight", torch.empty(0))
    check_tensors(weights, state, "the pocket model's weight file", advice="Install the library again, or train anew.")
    model.load_state_dict(weights)


def arm_file(vpp: bool) -> str:
    """Return the name of the file of the arm with VPP, or without."""
    return "vpp.safetensors" if vpp else "plain.safetensors"


def read_shipped(folder: str | Path, name: str, whose: str = WHOSE) -> dict[str, Tensor]:
    """Return a file's tensors, float16 as float32; raises VPPError where it is not as it was saved."""
    path = shipped_file(folder, name, whose)
    tensors = read_safetensors([path])
    check_weights_listed(path.parent, name)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def shipped_file(folder: str | Path, name: str, whose: str = WHOSE) -> Path:
    """Return the path of a file in the folder; raises VPPError where it is missing."""
    path = Path(folder) / name
    if not path.is_file():
        raise VPPError(
            f"{whose}'s '{name}' is missing in '{path.parent}': install the library with its data files, or train the "
            "model by its recipe in examples/recipes and ship it by examples/pocket.py."
        )
    return path
