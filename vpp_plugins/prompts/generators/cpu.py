"""Quick inference on a CPU, behind one function: `fold_resnet`. Nothing else here is for other files.

A ResNet made for inference: frozen norms folded into the convolutions, channels last, each fused with what follows. The
results are those of the module it is made from, up to rounding: within 1e-5 of the largest number in float32. One thing
differs: oneDNN's fused ReLU makes zero of a NaN. It costs memory: the folded weights once more, and four times over by
Winograd's algorithm. For the 162 MB of a ResNet-101 that is 387 MB at 640 pixels in float32.

Convolutions are oneDNN's, on weights in its own order and fused with what follows, and torch's where oneDNN is not.
3x3 convolutions have a quarter of the multiplications (Lavin and Gray, 2015, arXiv 1509.09308: F(4x4, 3x3)): each 4 x 4
tile of the output comes from a 6 x 6 tile of the input. Tiles and kernels are transformed, multiplied place by place
(36 matrix products over the channels: one 1x1 convolution in 36 groups), and the products transformed back. In float32
this costs more than a digit: errors of 1e-5 of the largest number, no more. In bfloat16 the errors are six to eight
times those of the direct convolution, and hardly show behind a ResNet, which rounds each block's sum too.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.prompts.generators.frozen_norm import FrozenBatchNorm2d


class Geometry(NamedTuple):
    """The numbers of a convolution, rows before columns."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int


def reordered(weight: Float[Tensor, "outputs inputs rows columns"], geometry: Geometry, shape: list[int]) -> Tensor:
    """Return the weight in the order that oneDNN wants for features of this shape; as it is where oneDNN is not.

    Features of another height or width then still get their right convolution, but up to a hundred times slower.
    """
    enabled = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    bfloat16 = weight.dtype == torch.bfloat16 and enabled and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not enabled or not (weight.dtype == torch.float32 or bfloat16):
        return weight
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, shape)


def convolve(
    features: Float[Tensor, "images inputs height width"],
    weight: Float[Tensor, "outputs _ _ _"],
    bias: Float[Tensor, " outputs"],
    geometry: Geometry,
    *,
    relu: bool = False,
) -> Float[Tensor, "images outputs rows columns"]:
    """Return the convolution, or its ReLU; `weight` is from `reordered`."""
    if weight.is_mkldnn:
        after = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(features, weight, bias, *geometry, after, [], "")
    convolved = _plainly(features, weight, bias, geometry)
    return convolved.relu_() if relu else convolved


def convolve_add(
    features: Float[Tensor, "images inputs height width"],
    weight: Float[Tensor, "outputs _ _ _"],
    bias: Float[Tensor, " outputs"],
    geometry: Geometry,
    residual: Float[Tensor, "images outputs rows columns"],
) -> Float[Tensor, "images outputs rows columns"]:
    """Return relu(convolution + residual), in the residual's memory where that saves a pass."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, features, weight, bias, *geometry, "add", 1.0, "relu", [], ""
        )
    return _plainly(features, weight, bias, geometry).add_(residual).relu_()


def _plainly(features: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry) -> Tensor:
    padding, stride, dilation, groups = geometry
    return F.conv2d(features, weight, bias, stride, padding, dilation, groups)


TILE = 4
PLACES = (TILE + 2) ** 2

# The paper's three matrices, applied to rows and to columns alike, for the points 0, 1, -1, 1/2, -2 and infinity. Its
# own 0, 1, -1, 2, -2 lose half as much again (Barabasz et al., 2018, arXiv 1803.10986). The first and the last are
# exact in bfloat16, also applied twice.
_INPUT = (
    (2, -3, -4, 3, 2, 0), (0, -2, 1, 5, 2, 0), (0, -2, 5, -1, -2, 0),
    (0, 2, 1, -2, -1, 0), (0, 1, -2, -1, 2, 0), (0, 2, -3, -4, 3, 2),
)  # fmt: skip
_KERNEL_30 = ((15, 0, 0), (5, 5, 5), (5, -5, 5), (32, 16, 8), (1, -2, 4), (0, 0, 15))
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 0.5, -2, 0), (0, 1, 1, 0.25, 4, 0), (0, 1, -1, 0.125, -8, 1))
_EVERYWHERE = 7
"""The place, point 1 both ways, that is added once to each number of the output tile: where a bias belongs."""
_GROUPED = Geometry([0, 0], [1, 1], [1, 1], PLACES)


def tiles(height: int, width: int) -> int:
    """Return how many tiles an image has; with few of them, reading the kernels costs more than it saves."""
    return -(-height // TILE) * -(-width // TILE)


def transform_kernel(
    weight: Float[Tensor, "outputs inputs 3 3"], height: int, width: int, *, dtype: torch.dtype
) -> Float[Tensor, "36*outputs inputs 1 1"]:
    """Return what `winograd_convolve` takes for a kernel, on features of this size: four times as many numbers."""
    one_way = torch.tensor(_KERNEL_30, dtype=torch.float64, device=weight.device) / 30
    outputs, inputs = weight.shape[:2]
    columns = weight.double().permute(2, 3, 0, 1).reshape(9, -1)
    kernel = (torch.kron(one_way, one_way) @ columns).view(PLACES * outputs, inputs, 1, 1).to(dtype)
    return reordered(kernel, _GROUPED, [1, PLACES * inputs, -(-height // TILE), -(-width // TILE)])


def transform_bias(bias: Float[Tensor, " outputs"]) -> Float[Tensor, " 36*outputs"]:
    """Return what `winograd_convolve` takes for a bias."""
    places = bias.new_zeros(PLACES, len(bias))
    places[_EVERYWHERE] = bias
    return places.flatten()


def winograd_convolve(
    features: Float[Tensor, "images inputs height width"],
    kernel: Float[Tensor, "places_outputs inputs 1 1"],
    bias: Float[Tensor, " places_outputs"],
    *,
    relu: bool = False,
) -> Float[Tensor, "images outputs height width"]:
    """Return the 3x3 convolution with stride 1 and padding 1; channels last is the layout that needs no copy."""
    images, inputs, height, width = features.shape
    down, across = -(-height // TILE), -(-width // TILE)
    framed = F.pad(
        features.permute(0, 2, 3, 1), (0, 0, 1, TILE * across + 1 - width, 1, TILE * down + 1 - height)
    ).contiguous()
    image, row, column, channel = framed.stride()
    windows = framed.as_strided(
        (images, down, across, TILE + 2, TILE + 2, inputs), (image, TILE * row, TILE * column, row, column, channel)
    )
    placed = _both_ways(_INPUT, features) @ windows.reshape(images * down * across, PLACES, inputs)
    products = convolve(placed.view(images, down, across, PLACES * inputs).permute(0, 3, 1, 2), kernel, bias, _GROUPED)
    outputs = len(bias) // PLACES
    squares = _both_ways(_OUTPUT, features) @ products.permute(0, 2, 3, 1).reshape(len(placed), PLACES, outputs)
    whole = features.new_empty(images, TILE * down, TILE * across, outputs)
    in_place = whole.view(images, down, TILE, across, TILE, outputs).transpose(2, 3)
    in_place.copy_(squares.view(in_place.shape))
    return (whole.relu_() if relu else whole)[:, :height, :width].permute(0, 3, 1, 2)


def _both_ways(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """Return the matrix that transforms rows and columns at once."""
    one_way = torch.tensor(matrix, dtype=like.dtype, device=like.device)
    return torch.kron(one_way, one_way)


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
