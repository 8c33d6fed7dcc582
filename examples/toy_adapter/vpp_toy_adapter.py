"""Visual Position Prompts for ToyMLLM."""

from torch import nn

from vpp_plugins import GlobalVPPConfig, VPPConfig, hookimpl
from vpp_plugins.plugins import Backbone


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim ToyMLLM, and say of it what VPP must know."""
    from toy_mllm import ToyMLLM

    if not isinstance(model, ToyMLLM):
        return None
    return Backbone(
        adapter="toy_mllm",
        hidden_size=model.config.text_config.hidden_size,
        vision_encoders=("eye",),  # gets the pixels [images, 3, height, width]
        projectors=("bridge",),
        pixel_argument="pictures",  # what the eye's forward calls them
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        box_format="ferret",  # ToyMLLM writes boxes as [x1, y1, x2, y2] in thousandths, as Ferret does
        frame="image",  # of the whole picture, not of the picture padded to a square
        defaults=VPPConfig(global_vpp=GlobalVPPConfig(unit="0-1000")),  # so the ticks count in thousandths too
    )
