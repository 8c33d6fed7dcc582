"""The pocket model before training, prompts attached: a random language model on ImageNet's and COCO's weights."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from vpp_plugins.attach import attach_vpp
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.pocket.build import build_pocket
from vpp_plugins.pocket.weights import load_backbone

SIZE = 320
"""Side of the tower's images, in pixels."""
DETECTOR_SIZE, QUERIES = 416, 16
"""Side of the detector's images, in pixels, and how many of its places are queries."""


@runtime_checkable
class WritesBoxes(Protocol):
    """A generator that says which numbers of its queries write their boxes, as sines and cosines."""

    box_code: slice


def pocket_config(seed: int = 0) -> VPPConfig:
    """Return the pocket model's prompts: axes at the tower's size, and the frozen NanoDet's best places."""
    return VPPConfig(
        global_vpp=GlobalVPPConfig(size=SIZE, border=29, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD),
        # a frozen detector knows no axes
        local_vpp=LocalVPPConfig(
            generator="nanodet", num_queries=QUERIES, image_size=DETECTOR_SIZE, projector_size=512, overlay=False
        ),
        seed=seed,
    )


def untrained_pocket(changes: Mapping[str, Any] | None = None, *, vpp: bool = True, seed: int = 0) -> tuple[Any, Any]:
    """Return an untrained pocket model with its prompts attached, or with `vpp=False` the bare host, and its processor.

    `changes` are made to `pocket_config`, see `VPPConfig.changed`. The tower's backbone has ImageNet's weights, the
    detector COCO's, and neither ever learns. All else is drawn from `seed`, the host's part alike with and without VPP.
    """
    host, processor = build_pocket(seed=seed)
    tower: Any = host.model.vision_tower
    tower.backbone.load_state_dict(load_backbone())
    tower.backbone.to(memory_format=torch.channels_last)  # in which bfloat16 runs twice as fast on a CPU
    if not vpp:
        return host, processor
    model: Any = attach_vpp(host, pocket_config(seed).changed(changes or {}))
    start_queries(model, length=1.0, seed=seed)
    return model, processor


def start_queries(model: Any, *, length: float | None = None, seed: int = 0) -> None:
    """Have an attached model's untrained queries say where they look, see `start_with_boxes`.

    Nothing is done where the generator writes no boxes, or the projector's hidden layer is under four times as wide as
    the language model. `length` is that of a word's vector; None measures it.
    """
    local = model.vpp.local_vpp
    if local is not None and written_boxes(local):
        words = model.get_input_embeddings().weight.detach().float()
        length = float(words.norm(dim=-1).mean()) if length is None else length
        start_with_boxes(local.projector, local.generator.box_code, length=length, seed=seed)


def written_boxes(local: Any) -> slice | None:
    """Return which hidden numbers of a LocalVPP's projector write boxes, see `start_with_boxes`; None where none do."""
    first, _, last = local.projector
    width = int(last.weight.shape[0])
    wide = isinstance(local.generator, WritesBoxes) and int(first.weight.shape[0]) >= 4 * width
    return slice(0, 2 * width) if wide else None


@torch.no_grad()
def start_with_boxes(projector: nn.Sequential, columns: slice, *, length: float = 1.0, seed: int = 0) -> None:
    """Have half of a local prompt's projector begin as a random linear map of the numbers that write a query's box.

    gelu(x) - gelu(-x) = x: a hidden number and its opposite hand on a sum as it is. Half of the hidden numbers must
    be at least twice the language model's width. A box's numbers, each about 0.7 large, come to `length`, as words do.
    """
    first, _, last = projector
    if not isinstance(first, nn.Linear) or not isinstance(last, nn.Linear):
        raise TypeError(f"a projector begins and ends with a linear layer, but this one is {projector}.")
    width, numbers = last.weight.shape[0], columns.stop - columns.start
    draw = torch.Generator().manual_seed(seed)
    code = torch.randn(width, numbers, generator=draw) * length * (2 / (width * numbers)) ** 0.5
    once = torch.zeros(width, first.weight.shape[1])
    once[:, columns] = code
    first.weight[: 2 * width] = torch.cat([once, -once])
    first.bias[: 2 * width] = 0
    last.weight[:, : 2 * width] = torch.cat([torch.eye(width), -torch.eye(width)], dim=1)
