"""LLaVA-1.5: transformers' LlavaForConditionalGeneration."""

import logging
from typing import Any

from torch import nn

from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, hookimpl
from vpp_plugins.plugins import Backbone
from vpp_plugins.prompts import CLIP_MEAN, CLIP_STD, RGB

log = logging.getLogger("vpp_plugins")
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
VPP_LLAVA = "vpp_llava"
"""Key in config.json that marks a LLaVA converted from VPP-LLaVA, which the adapter of that name claims."""


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim LLaVA-1.5: boxes 0-1 on the padded square, pixels as planes."""
    from transformers import LlavaForConditionalGeneration

    if not isinstance(model, LlavaForConditionalGeneration):
        return None
    config: Any = model.config
    if VPP_LLAVA in config.to_dict():
        return None
    mean, std = normalisation_of(config.vision_config)
    return Backbone(
        adapter="llava",
        hidden_size=config.text_config.hidden_size,
        vision_encoders=("model.vision_tower",),
        projectors=("model.multi_modal_projector",),
        box_format="llava",
        frame="square",
        image_mean=mean,
        image_std=std,
        plain_prompt="USER: {image}\n{question} ASSISTANT:",
        prepare_processor=pad_to_square,
        defaults=VPPConfig(
            global_vpp=GlobalVPPConfig(unit="0-1"),
            # boxes are measured on the padded square: the detector's positions must run over it, and its axes be seen
            local_vpp=LocalVPPConfig(mask_padding=False),
        ),
    )


def normalisation_of(vision_config: Any) -> tuple[RGB, RGB]:
    """Return mean and standard deviation of the pixels of a LLaVA's vision encoder, CLIP or SigLIP."""
    siglip = vision_config.model_type == "siglip_vision_model"
    return (SIGLIP_MEAN, SIGLIP_STD) if siglip else (CLIP_MEAN, CLIP_STD)


def pad_to_square(processor: Any) -> None:
    """Make the image processor pad to a square, as LLaVA was trained; transformers' default crops the sides away.

    Says so in a log line of "vpp_plugins", unless the processor pads already.
    """
    from transformers import LlavaImageProcessor

    current = processor.image_processor
    if isinstance(current, LlavaImageProcessor) and current.do_pad:
        return
    log.warning(
        "LLaVA: this processor would crop the sides of images away, so VPPProcessor's copy of it pads them to a "
        "square instead, as LLaVA was trained and as it measures boxes."
    )
    if isinstance(current, LlavaImageProcessor):
        current.do_pad = True
        return
    # published LLaVA checkpoints name CLIP's image processor, which cannot pad
    kept = ("size", "crop_size", "image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
    settings = {name: value for name, value in current.to_dict().items() if name in kept}
    processor.image_processor = LlavaImageProcessor(**settings, do_pad=True)
