"""The pocket model before training, prompts attached: a random language model on ImageNet's backbone."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.attach import attach_vpp
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.pocket.build import build_pocket
from vpp_plugins.pocket.vision import BACKBONE, PocketVisionModel, make_constant
from vpp_plugins.pocket.weights import load_backbone

SIZE = 320
"""Side of the tower's and of the detector's images, in pixels."""
_DETECTOR: Mapping[str, Any] = {
    "backbone": BACKBONE,
    "width": 128,
    "heads": 8,
    "feedforward": 512,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "dropout": 0.0,
    "fold": False,
}


def pocket_config(seed: int = 0) -> VPPConfig:
    """Return the pocket model's prompts: axes at the tower's size, and a small DETR on the tower's kind of backbone."""
    return VPPConfig(
        global_vpp=GlobalVPPConfig(size=SIZE, border=29, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD),
        # the detector's boxes are those of the padded square, as the answers' are: padding must not shift positions
        local_vpp=LocalVPPConfig(
            num_queries=24, generator_options=dict(_DETECTOR), image_size=SIZE, projector_size=256, mask_padding=False
        ),
        seed=seed,
    )


def untrained_pocket(changes: Mapping[str, Any] | None = None, *, seed: int = 0) -> tuple[Any, Any]:
    """Return an untrained pocket model with its prompts attached, and the host's processor.

    `changes` are made to `pocket_config`, see `VPPConfig.changed`. The backbone, the tower's and the detector's, has
    ImageNet's weights and never learns. All else is drawn from `seed`.
    """
    weights = load_backbone()
    host, processor = build_pocket(seed=seed)
    tower: Any = host.model.vision_tower
    tower.backbone.load_state_dict(weights)
    tower.backbone.to(memory_format=torch.channels_last)  # in which bfloat16 runs twice as fast on a CPU
    model: Any = attach_vpp(host, pocket_config(seed).changed(changes or {}))
    local = model.vpp.local_vpp
    if local is not None:
        local.generator.backbone = TowersBackbone(local.generator.backbone, tower, weights)
    return model, processor


class TowersBackbone(nn.Module):
    """The detector's backbone while both are trained: its maps are the tower's, computed once for both.

    `body` has the same weights, so that state dicts are those of a detector by itself.
    """

    def __init__(self, own: nn.Module, tower: PocketVisionModel, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.body = own.get_submodule("body")
        self.body.load_state_dict({name: weights[name] for name in self.body.state_dict()})
        make_constant(self.body)
        self._tower = (tower,)  # not in our state dict

    def forward(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images channels rows columns"]:
        _, coarse = self._tower[0].maps(pixel_values)
        return coarse
