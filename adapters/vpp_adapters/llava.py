"""LLaVA-1.5: transformers' LlavaForConditionalGeneration."""

from typing import Any

from torch import nn

from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, hookimpl
from vpp_plugins.backbone import Backbone

SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim LLaVA-1.5: boxes 0-1 on the padded square, pixels as planes."""
    from transformers import LlavaForConditionalGeneration

    if not isinstance(model, LlavaForConditionalGeneration):
        return None
    siglip = model.config.vision_config.model_type == "siglip_vision_model"
    normalisation = {"image_mean": SIGLIP_MEAN, "image_std": SIGLIP_STD} if siglip else {}
    return Backbone(
        adapter="llava",
        hidden_size=model.config.text_config.hidden_size,
        vision_encoders=("model.vision_tower",),
        box_format="llava",
        frame="square",
        prepare_processor=pad_to_square,
        defaults=VPPConfig(global_vpp=GlobalVPPConfig(unit="0-1"), local_vpp=LocalVPPConfig()),
        **normalisation,
    )


def pad_to_square(processor: Any) -> None:
    """Make the image processor pad to a square, as LLaVA was trained; transformers' default crops the picture's sides away."""
    from transformers import LlavaImageProcessor

    current = processor.image_processor
    if isinstance(current, LlavaImageProcessor):
        current.do_pad = True
        return
    # published LLaVA checkpoints name CLIP's image processor, which cannot pad
    kept = ("size", "crop_size", "image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
    settings = {name: value for name, value in current.to_dict().items() if name in kept}
    processor.image_processor = LlavaImageProcessor(**settings, do_pad=True)
