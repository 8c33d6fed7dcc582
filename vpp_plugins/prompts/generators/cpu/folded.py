"""A ResNet made for inference: frozen norms folded into the convolutions, channels last, each fused with what follows.

The results are those of the module it is made from, up to rounding: within 1e-5 of the largest number in float32. One
thing differs: oneDNN's fused ReLU makes zero of a NaN.

It costs memory: the folded weights once more, and four times over by Winograd's algorithm. For the 162 MB of a
ResNet-101 that is 387 MB at 640 pixels in float32.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.prompts.generators.cpu.onednn import Geometry, convolve, convolve_add, reordered
from vpp_plugins.prompts.generators.cpu.winograd import tiles, transform_bias, transform_kernel, winograd_convolve
from vpp_plugins.prompts.generators.frozen_norm import FrozenBatchNorm2d

WINOGRAD_CHANNELS = 128
"""From how many channels on a 3x3 convolution is quicker by Winograd's algorithm, if there are this many tiles:"""
WINOGRAD_TILES = 25

Step = Callable[[Tensor], Tensor]


class FoldedResNet:
    """What `fold_resnet` returns; no module, so its copies of the weights are in no state dict."""

    def __init__(self, stem: list[Step], blocks: "list[tuple[list[Convolution], list[Step]]]") -> None:
        self.stem = stem
        self.blocks = blocks
        """Of each block its convolutions, and the steps of the shortcut around them."""

    def __call__(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images channels rows columns"]:
        """Take the images one at a time: the maps of several do not fit a processor's caches."""
        last = pixel_values.contiguous(memory_format=torch.channels_last)
        return torch.cat([self._features(image) for image in last.split(1)])

    def _features(self, image: Tensor) -> Tensor:
        features = _run(self.stem, image)
        for convolutions, shortcut in self.blocks:
            branch = _run(convolutions[:-1], features)
            features = convolutions[-1].add(branch, _run(shortcut, features))
        return features


class Convolution:
    """A convolution with the norm after it folded in, and after that a ReLU or nothing.

    Weight and bias are made when they are needed first, and again for features of another size: the ways of computing
    want them in different forms.
    """

    def __init__(self, source: nn.Conv2d, norm: FrozenBatchNorm2d, *, relu: bool) -> None:
        self.source, self.relu = source, relu
        padding = [int(length) for length in source.padding]
        self.geometry = Geometry(padding, list(source.stride), list(source.dilation), source.groups)
        exact = torch.promote_types(source.weight.dtype, torch.float32)
        scale = norm.weight.to(exact) * (norm.running_var.to(exact) + norm.eps).rsqrt()
        bias = norm.bias.to(exact) - norm.running_mean.to(exact) * scale
        if source.bias is not None:
            bias += source.bias.to(exact) * scale
        self.scale, self.bias = scale, bias.to(source.weight.dtype)
        self._made: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None
        """Size of the features, and weight and bias for them; set at once, for threads with images of other sizes."""

    def __call__(self, features: Tensor) -> Tensor:
        if self._suits_winograd(features):
            return winograd_convolve(features, *self._weights(features), relu=self.relu)
        return convolve(features, *self._weights(features), self.geometry, relu=self.relu)

    def add(self, features: Tensor, residual: Tensor) -> Tensor:
        """Return relu(convolution + residual), in the residual's memory where that saves a pass."""
        if self._suits_winograd(features):
            return winograd_convolve(features, *self._weights(features)).add_(residual).relu_()
        return convolve_add(features, *self._weights(features), self.geometry, residual)

    def _suits_winograd(self, features: Tensor) -> bool:
        source = self.source
        plain_3x3 = source.kernel_size == (3, 3) and self.geometry == ([1, 1], [1, 1], [1, 1], 1)
        wide = min(source.in_channels, source.out_channels) >= WINOGRAD_CHANNELS
        many = tiles(*features.shape[-2:]) >= WINOGRAD_TILES
        return plain_3x3 and wide and many and features.dtype in (torch.float32, torch.bfloat16)

    def _weights(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias in the form that suits features of this size."""
        height, width = features.shape[-2:]
        made = self._made
        if made is None or made[0] != (height, width):
            # What is kept must not be an inference tensor where the first call is under inference_mode.
            with torch.inference_mode(False), torch.no_grad():
                made = self._made = (height, width), self._make(features)
        return made[1]

    def _make(self, features: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.source.weight.to(self.scale.dtype) * self.scale[:, None, None, None]
        if self._suits_winograd(features):
            kernel = transform_kernel(weight, *features.shape[-2:], dtype=features.dtype)
            return kernel, transform_bias(self.bias)
        direct = weight.to(features.dtype).contiguous(memory_format=torch.channels_last)
        return reordered(direct, self.geometry, [1, *features.shape[1:]]), self.bias


def fold_resnet(body: nn.Module) -> FoldedResNet | None:
    """Return the twin of a timm ResNet's feature extractor, or None where something in it is not as plain as that."""
    from timm.models.resnet import BasicBlock, Bottleneck

    parts = dict(body.named_children())
    layers = [part for name, part in parts.items() if name.startswith("layer")]
    if list(parts)[:4] != ["conv1", "bn1", "act1", "maxpool"] or len(parts) != 4 + len(layers):
        return None
    blocks = [block for layer in layers for block in layer.children()]
    if not layers or not all(type(block) in (BasicBlock, Bottleneck) for block in blocks):
        return None
    try:
        stem = _folded([*_chain(parts["conv1"]), parts["bn1"], parts["act1"], parts["maxpool"]])
        return FoldedResNet(stem, [_folded_block(block) for block in blocks])
    except _NotPlainError:
        return None


class _NotPlainError(Exception):
    """A part of a network is none of those that are folded."""


def _folded_block(block: nn.Module) -> tuple[list[Convolution], list[Step]]:
    """Take a block's parts in their order; the activation at its end follows the sum, and is part of it."""
    parts = dict(block.named_children())
    shortcut = _folded(_chain(parts.pop("downsample", nn.Identity())))
    *branch, end = [part for part in parts.values() if type(part) is not nn.Identity]
    steps = _folded(branch)
    convolutions = [step for step in steps if isinstance(step, Convolution)]
    if type(end) is not nn.ReLU or len(convolutions) != len(steps) or convolutions[-1].relu:
        raise _NotPlainError
    return convolutions, shortcut


def _folded(modules: Iterable[nn.Module]) -> list[Step]:
    """Fold a chain of modules, each convolution with its norm and its activation."""
    rest = [module for module in modules if type(module) is not nn.Identity]
    steps: list[Step] = []
    while rest:
        match rest:
            case [nn.Conv2d(padding_mode="zeros") as source, FrozenBatchNorm2d(after=nn.Identity()) as norm, *rest] if (
                type(source) is nn.Conv2d and not isinstance(source.padding, str)
            ):
                relu = bool(rest) and type(rest[0]) is nn.ReLU
                rest = rest[1:] if relu else rest
                steps.append(Convolution(source, norm, relu=relu))
            case [nn.MaxPool2d() | nn.AvgPool2d() as pool, *rest]:
                steps.append(pool)
            case _:
                raise _NotPlainError
    return steps


def _chain(module: nn.Module) -> list[nn.Module]:
    return list(module.children()) if type(module) is nn.Sequential else [module]


def _run(steps: Iterable[Step], features: Tensor) -> Tensor:
    for step in steps:
        features = step(features)
    return features
