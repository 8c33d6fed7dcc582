"""The names of a VPP-LLaVA checkpoint's tensors here, and its sizes, as its config.json and its tensors show them."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vpp_adapters.llava import VPP_LLAVA
from vpp_adapters.vpp_llava.reference import REFERENCE, read_settings
from vpp_plugins import GlobalVPP, LocalVPP, VPPConfig, VPPError
from vpp_plugins.errors import few
from vpp_plugins.files import Shape, misfits
from vpp_plugins.plugins import build_generator
from vpp_plugins.prompts import VPP
from vpp_plugins.prompts.generators import VPP_LLAVA_PREFIX, our_name

CLIP_PREFIX = "model.vision_tower.vision_tower.vision_model."
DETR_PREFIX = VPP_LLAVA_PREFIX

_RENAMED: tuple[tuple[str, str], ...] = (
    (r"^lm_head\.", "lm_head."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (f"^{re.escape(CLIP_PREFIX)}", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.visual_prompt$", "vpp.global_prompt.prompt"),
    (r"^model\.grd_projector\.", "vpp.local_prompt.projector."),
)
_PARTS = {
    "global prompt (model.visual_prompt)": "model.visual_prompt",
    "projector of object queries (model.grd_projector)": "model.grd_projector.",
    "detector (model.detr_vision_tower)": DETR_PREFIX,
}
# Older versions of transformers and torch saved these, although they follow from the configuration.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$|\.embeddings\.position_ids$|\.num_batches_tracked$")


def is_computed(key: str) -> bool:
    """Return whether the tensor is no weight, but computed anew when the model is built."""
    return _COMPUTED.search(key) is not None


def new_name(key: str) -> str | None:
    """Return the tensor's name in an attached LlavaForConditionalGeneration; None if VPP-LLaVA has no such tensor."""
    if key.startswith(DETR_PREFIX):
        return f"vpp.local_prompt.generator.{our_name(key)}"
    for pattern, replacement in _RENAMED:
        renamed, found = re.subn(pattern, replacement, key)
        if found:
            return renamed
    return None


def check_parts(keys: Mapping[str, Shape], source: str) -> None:
    """Raise VPPError if a whole part of VPP-LLaVA is absent, as from a plain LLaVA."""
    if absent := [part for part, prefix in _PARTS.items() if not any(key.startswith(prefix) for key in keys)]:
        raise VPPError(
            f"{source} holds no {', no '.join(absent)}: it is a LLaVA without VPP, or not the whole of a VPP-LLaVA. "
            "Nothing was written."
        )


def match(found: Mapping[str, Shape], expected: Mapping[str, Shape], source: str) -> dict[str, str]:
    """Return the new name of every tensor found, in the same order, computed ones left out.

    Raises VPPError unless each one is expected, in its shape, and each expected one is there exactly once.
    """
    names = {key: new_name(key) or "" for key in found if not is_computed(key)}
    origins: dict[str, list[str]] = {}
    for key, name in names.items():
        origins.setdefault(name, []).append(key)
    shapes = {name if name in expected else key: found[key] for key, name in names.items()}
    problems = misfits(shapes, expected)
    if doubled := [" and ".join(keys) for name, keys in origins.items() if name in expected and len(keys) > 1]:
        problems.append(f"{len(doubled)} doubled: {few(doubled)}")
    if problems:
        raise VPPError(f"{source} does not fit its config.json: {'; '.join(problems)}. Nothing was written.")
    return names


RESNETS: dict[tuple[int, tuple[int, ...]], str] = {(64, (3, 4, 6, 3)): "resnet50", (64, (3, 4, 23, 3)): "resnet101"}
"""timm's names of the detector's backbones, by channels of the stem and depths of the four stages."""

_LLAMA_FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act rms_norm_eps "
    "max_position_embeddings initializer_range attention_bias attention_dropout tie_word_embeddings bos_token_id "
    "eos_token_id pad_token_id use_cache"
).split()
# LlavaForConditionalGeneration is so, and no other way; what VPP-LLaVA trained is so too.
_SETTINGS = {
    "image_aspect_ratio": "pad",
    "mm_patch_merge_type": "flat",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
}


def host_config(settings: Mapping[str, Any], shapes: Mapping[str, Shape], folder: Path) -> Any:
    """Return transformers' configuration of the checkpoint's LLaVA, at its vocabulary, without `<image>`."""
    for name, supported in _SETTINGS.items():
        if settings.get(name, supported) != supported:
            raise VPPError(f"config.json has {name}={settings[name]!r}, but only {supported!r} can be converted.")
    text: dict[str, Any] = {name: settings[name] for name in _LLAMA_FIELDS if name in settings}
    text["vocab_size"] = settings.get("vocab_size", _shape(shapes, "model.embed_tokens.weight")[0])
    scaling = dict(settings.get("rope_scaling") or {})
    theta = settings.get("rope_theta", 10000.0)
    text["rope_parameters"] = {"rope_type": scaling.pop("type", "default"), "rope_theta": theta, **scaling}
    vision = _clip_config(settings, shapes, folder)
    values: dict[str, Any] = {
        "image_token_id": text["vocab_size"],
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "vision_feature_layer": settings.get("mm_vision_select_layer", -2),
        "tie_word_embeddings": settings.get("tie_word_embeddings", False),
        VPP_LLAVA: True,
    }
    return LlavaConfig(text_config=LlamaConfig(**text), vision_config=vision, **values)


def prompt_config(shapes: Mapping[str, Shape]) -> VPPConfig:
    """Return the reference's settings at the sizes of a checkpoint's tensors."""
    axes, local = REFERENCE.global_vpp, REFERENCE.local_vpp
    assert axes is not None and local is not None  # noqa: PT018 - for mypy
    options = {
        "backbone": _resnet(shapes),
        "width": _shape(shapes, f"{DETR_PREFIX}input_proj.weight")[0],
        "feedforward": _shape(shapes, f"{DETR_PREFIX}transformer.decoder.layers.0.linear1.weight")[0],
        "encoder_layers": _count(shapes, rf"{re.escape(DETR_PREFIX)}transformer\.encoder\.layers\.(\d+)\."),
        "decoder_layers": _count(shapes, rf"{re.escape(DETR_PREFIX)}transformer\.decoder\.layers\.(\d+)\."),
    }
    return VPPConfig(
        global_vpp=replace(axes, size=_shape(shapes, "model.visual_prompt")[-1]),
        local_vpp=replace(
            local,
            num_queries=_shape(shapes, f"{DETR_PREFIX}query_embed.weight")[0],
            projector_size=_shape(shapes, "model.grd_projector.0.weight")[0],
            generator_options=options,
        ),
    )


def expected_shapes(host: Any, prompts: VPPConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of an attached LLaVA of these configurations."""
    axes, local = prompts.global_vpp, prompts.local_vpp
    assert axes is not None and local is not None  # noqa: PT018 - for mypy
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(host)
        generator: Any = build_generator(local.generator, local.num_queries, local.generator_options)
        queries = LocalVPP(
            generator,
            num_queries=local.num_queries,
            query_width=generator.width,
            hidden_size=host.text_config.hidden_size,
            projector_size=local.projector_size,
        )
    vpp = VPP(prompts, global_vpp=GlobalVPP(axes.size, border=axes.border), local_vpp=queries)
    tensors = {**model.state_dict(), **{f"vpp.{name}": tensor for name, tensor in vpp.state_dict().items()}}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _clip_config(settings: Mapping[str, Any], shapes: Mapping[str, Shape], folder: Path) -> Any:
    """Return the vision tower's configuration: sizes by its tensors, what they do not show by its own config.json.

    Without that file it is one of OpenAI's, whose heads are 64 wide.
    """
    patches = _shape(shapes, f"{CLIP_PREFIX}embeddings.patch_embedding.weight")
    width, patch = patches[0], patches[-1]
    name = str(settings.get("mm_vision_tower", ""))
    own = folder / name / "config.json"
    details: dict[str, Any] = {"num_attention_heads": width // 64}
    if name and own.is_file():
        values = read_settings(own.parent)
        values = values.get("vision_config", values)
        names = ("num_attention_heads", "hidden_act", "layer_norm_eps")
        details = {part: values[part] for part in names if part in values}
    elif "clip-vit" not in name.lower() or "laion" in name.lower():
        raise VPPError(
            f"config.json names the vision tower '{name}', which is none of OpenAI's CLIPs: put its config.json into "
            f"'{own.parent}'."
        )
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(shapes, f"{CLIP_PREFIX}encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=_count(shapes, rf"{re.escape(CLIP_PREFIX)}encoder\.layers\.(\d+)\."),
        patch_size=patch,
        image_size=math.isqrt(_shape(shapes, f"{CLIP_PREFIX}embeddings.position_embedding.weight")[0] - 1) * patch,
        **details,
    )


def _resnet(shapes: Mapping[str, Shape]) -> str:
    body = f"{DETR_PREFIX}backbone.0.body."
    stem = _shape(shapes, f"{body}conv1.weight")[0]
    depths = tuple(_count(shapes, rf"{re.escape(body)}layer{stage}\.(\d+)\.") for stage in range(1, 5))
    if (stem, depths) not in RESNETS:
        raise VPPError(
            f"the detector's backbone is a ResNet of stem {stem} and stages {depths}, but only "
            f"{' and '.join(sorted(RESNETS.values()))} can be converted."
        )
    return RESNETS[stem, depths]


def _shape(shapes: Mapping[str, Shape], key: str) -> Shape:
    if not shapes.get(key):
        raise VPPError(f"the checkpoint holds no '{key}', which tells sizes of the model: it is not whole.")
    return shapes[key]


def _count(keys: Mapping[str, Shape], pattern: str) -> int:
    return 1 + max((int(found[1]) for key in keys if (found := re.match(pattern, key))), default=-1)
