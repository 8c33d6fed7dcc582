"""InternVL 2.5 to 3.5 in transformers' own class: InternVLForConditionalGeneration."""

from typing import Any

from torch import nn

from vpp_plugins import GlobalVPPConfig, VPPConfig, hookimpl
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.plugins import Backbone


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim InternVL: boxes 0-1000 on the whole image, pixels as tiles and a thumbnail."""
    from transformers import InternVLForConditionalGeneration

    if not isinstance(model, InternVLForConditionalGeneration):
        return None
    config: Any = model.config
    return Backbone(
        adapter="internvl",
        hidden_size=config.text_config.hidden_size,
        vision_encoders=("model.vision_tower",),
        projectors=("model.multi_modal_projector",),
        box_format="internvl",
        frame="image",
        tiled=True,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        defaults=VPPConfig(global_vpp=GlobalVPPConfig(unit="0-1000")),
    )
