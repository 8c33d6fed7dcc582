"""3x3 convolutions with a quarter of the multiplications (Lavin and Gray, 2015, arXiv 1509.09308: F(4x4, 3x3)).

Each 4 x 4 tile of the output comes from a 6 x 6 tile of the input. Tiles and kernels are transformed, multiplied place
by place (36 matrix products over the channels: one 1x1 convolution in 36 groups), and the products transformed back.
In float32 this costs more than a digit: errors of 1e-5 of the largest number, no more. In bfloat16 the errors are six
to eight times those of the direct convolution, and hardly show behind a ResNet, which rounds each block's sum too.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpp_plugins.prompts.generators.cpu.onednn import Geometry, convolve, reordered

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
