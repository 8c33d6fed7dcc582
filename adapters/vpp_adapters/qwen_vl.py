"""Qwen-VL in transformers: Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, the mixtures of experts included."""

from typing import Any

from torch import nn

from vpp_plugins import GlobalVPPConfig, VPPConfig, hookimpl
from vpp_plugins.plugins import Backbone
from vpp_plugins.plugins.layouts import Patches
from vpp_plugins.prompts import CLIP_MEAN, CLIP_STD, RGB

HALF: RGB = (0.5, 0.5, 0.5)
"""From Qwen3-VL on, mean and standard deviation of the pixels."""


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim Qwen-VL: boxes on the whole image, pixels as flattened patches of any grid."""
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLForConditionalGeneration,
        Qwen3_5ForConditionalGeneration,
        Qwen3_5MoeForConditionalGeneration,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeForConditionalGeneration,
    )

    if isinstance(model, Qwen2VLForConditionalGeneration):
        return _describe(model, "qwen2-vl", CLIP_MEAN, CLIP_STD)
    if isinstance(model, Qwen2_5_VLForConditionalGeneration):
        return _describe(model, "qwen2.5-vl", CLIP_MEAN, CLIP_STD)
    if isinstance(model, Qwen3VLForConditionalGeneration | Qwen3VLMoeForConditionalGeneration):
        return _describe(model, "qwen3-vl", HALF, HALF, mergers=("merger", "deepstack_merger_list"))
    if isinstance(model, Qwen3_5ForConditionalGeneration | Qwen3_5MoeForConditionalGeneration):
        return _describe(model, "qwen3.5", HALF, HALF)
    return None


def _describe(
    model: Any, box_format: str, image_mean: RGB, image_std: RGB, mergers: tuple[str, ...] = ("merger",)
) -> Backbone:
    vision = model.config.vision_config
    return Backbone(
        adapter="qwen_vl",
        hidden_size=model.config.text_config.hidden_size,
        vision_encoders=("model.visual",),
        projectors=tuple(f"model.visual.{merger}" for merger in mergers),
        box_format=box_format,
        frame="image",
        pixel_argument="hidden_states",
        pixel_layout=Patches(merge=vision.spatial_merge_size, frames=vision.temporal_patch_size),
        image_mean=image_mean,
        image_std=image_std,
        # Qwen2.5-VL counts pixels of an image whose size varies; hundreds of the way are the nearest that ticks can be
        defaults=VPPConfig(global_vpp=GlobalVPPConfig(unit="0-1000")),
    )
