"""The shipped weights: one frozen backbone that tower and detector share, and one file per arm for what was trained.

backbone.safetensors   EfficientNet-Lite0 (ImageNet), float16
plain.safetensors      the arm without VPP, float16, its language model's matrices as int8 with one scale per row
vpp.safetensors        the arm with VPP, likewise; its prompts' tensors start with "vpp."
pocket.json            sizes of the language model
vpp_config.json        what was attached
detection_*            the detector's heads and their nouns, for drawing only
tokenizer*.json, chat_template.jinja
manifest.json          sizes and SHA-256 of all of them
"""

import json
import os
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
from vpp_plugins.prompts.generators import DetectionHeads

FOLDER = Path(__file__).with_name("weights")
BACKBONE_PREFIXES = ("model.vision_tower.backbone.", "vpp.local_prompt.generator.backbone.body.")
"""Where the one backbone stands: in the vision tower and in the detector."""
BACKBONE_FILE = "backbone.safetensors"
QUANTISED = "language_model.layers."
SCALE = "@scale"


def load_pocket(
    vpp: bool = True, folder: str | Path = FOLDER
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor | VPPProcessor]:
    """Return the trained pocket model, float32 on the CPU and in evaluation mode, with its processor. Works offline.

    `vpp` chooses the arm: with Visual Position Prompts attached, or the twin that was trained alike without them.
    Raises VPPError where the weights are missing or damaged, and for a `vpp` that is no bool.
    """
    if not isinstance(vpp, bool):
        raise VPPError(f"vpp must be True or False, but is {vpp!r}: a folder is named by load_pocket(folder=...).")
    if not isinstance(folder, str | os.PathLike):
        raise VPPError(f"folder must be the path of a folder, but is {folder!r}.")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(_file(folder, "tokenizer.json").parent)
    host, processor = build_pocket(tokenizer, **json.loads(_file(folder, "pocket.json").read_text(encoding="utf-8")))
    weights = expand(_read(folder, "vpp.safetensors" if vpp else "plain.safetensors"))
    backbone = _read(folder, BACKBONE_FILE)
    if not vpp:
        _load(host, weights, backbone)
        return host, processor
    model: Any = attach_vpp(host, VPPConfig.load(_file(folder, "vpp_config.json")))
    _load(model, weights, backbone)
    model.vpp.trained = True
    return host, VPPProcessor(processor, model)


def save_pocket(model: Any, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write one arm, the one with VPP where it is attached; the backbone must be the same in both, as it is frozen.

    `tokenizer` is the host's, without `<|vpp|>`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    backbone = {name.removeprefix(BACKBONE_PREFIXES[0]): v for name, v in state.items() if BACKBONE_PREFIXES[0] in name}
    trained = {name: v for name, v in state.items() if not name.startswith((*BACKBONE_PREFIXES, "lm_head."))}
    attached = is_attached(model)
    save_file(compress(trained), folder / ("vpp.safetensors" if attached else "plain.safetensors"))
    save_file({name: _half(value) for name, value in backbone.items()}, folder / BACKBONE_FILE)
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
    return {name: v.float() if v.is_floating_point() else v for name, v in _read(folder, BACKBONE_FILE).items()}


def load_detection_heads(folder: str | Path = FOLDER) -> tuple[DetectionHeads, list[str]]:
    """Return the heads that the detector was trained with, and the nouns of its classes: to draw what queries see."""
    tensors = _read(folder, "detection_heads.safetensors")
    names: list[str] = json.loads(_file(folder, "detection_nouns.json").read_text(encoding="utf-8"))
    heads = DetectionHeads(tensors["class_embed.weight"].shape[1], len(names))
    heads.load_state_dict({name: value.float() for name, value in tensors.items()})
    return heads.eval(), names


def save_detection_heads(heads: Mapping[str, Tensor], nouns: list[str], folder: str | Path) -> None:
    """Write a detector's heads, as a state dict of DetectionHeads, and the nouns of its classes, in order."""
    save_file({name: _half(value) for name, value in heads.items()}, Path(folder) / "detection_heads.safetensors")
    (Path(folder) / "detection_nouns.json").write_text(json.dumps(nouns) + "\n", encoding="utf-8")
    write_manifest(Path(folder))


def compress(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float16, and int8 with a float16 scale per row for the language model's matrices."""
    small = {}
    for name, value in state.items():
        if QUANTISED in name and value.ndim == 2:
            scale = _half(value.float().abs().amax(1, keepdim=True).clamp(min=1e-6) / 127)
            small[name] = (value.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
            small[name + SCALE] = scale
        else:
            small[name] = _half(value)
    return small


def expand(small: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `compress`, in float32, up to rounding."""
    names = [name for name in small if not name.endswith(SCALE)]
    scales = {name: small[name + SCALE].float() for name in names if name + SCALE in small}
    return {name: small[name].float() * scales.get(name, torch.ones(())) for name in names}


def _half(value: Tensor) -> Tensor:
    return value.detach().to(torch.float16).contiguous() if value.is_floating_point() else value.detach().clone()


def _load(model: nn.Module, weights: dict[str, Tensor], backbone: Mapping[str, Tensor]) -> None:
    """Fill the model: the one backbone in both of its places, the language model's head with its embeddings."""
    state = model.state_dict()
    places = {prefix + name: value for prefix in BACKBONE_PREFIXES for name, value in backbone.items()}
    weights |= {name: value for name, value in places.items() if name in state}
    weights["lm_head.weight"] = weights.get("model.language_model.embed_tokens.weight", torch.empty(0))
    check_tensors(weights, state, "the pocket model's weight file", advice="Install the library again, or train anew.")
    model.load_state_dict(weights)


def _read(folder: str | Path, name: str) -> dict[str, Tensor]:
    path = _file(folder, name)
    tensors = read_safetensors([path])
    check_weights_listed(path.parent, name)
    return tensors


def _file(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise VPPError(
            f"the pocket model's '{name}' is missing in '{path.parent}': install the library with its data files, or "
            "train the model with examples/pocket."
        )
    return path
