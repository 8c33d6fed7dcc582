"""3x3 convolutions with a quarter of the multiplications (Lavin and Gray, 2015, arXiv 1509.09308: F(4x4, 3x3)).

Each 4 x 4 tile of the output comes from a 6 x 6 tile of the input. Tiles and kernels are transformed, multiplied place
by place (36 matrix products over the channels), and the products transformed back. In float32 this costs about two
digits: errors of 1e-5 of the largest number, no more.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TILE = 4
PLACES = (TILE + 2) ** 2

# The three matrices of the paper, applied to rows and to columns alike. Float32 holds all but the thirds exactly.
_INPUT = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_KERNEL_24 = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def tiles(height: int, width: int) -> int:
    """Return how many tiles a picture has; with few of them, reading the kernels costs more than it saves."""
    return -(-height // TILE) * -(-width // TILE)


def transform_kernel(weight: Float[Tensor, "outputs inputs 3 3"]) -> Float[Tensor, "36 inputs outputs"]:
    """Return what `convolve` takes for a kernel: four times as many numbers."""
    one_way = torch.tensor(_KERNEL_24, dtype=torch.float64, device=weight.device) / 24
    outputs, inputs = weight.shape[:2]
    columns = weight.double().permute(2, 3, 1, 0).reshape(9, -1)
    return (torch.kron(one_way, one_way) @ columns).view(PLACES, inputs, outputs).to(weight.dtype)


def convolve(
    features: Float[Tensor, "images inputs height width"],
    kernel: Float[Tensor, "36 inputs outputs"],
    bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "images outputs height width"]:
    """Return the 3x3 convolution with stride 1 and padding 1; channels last is the layout that needs no copy."""
    images, inputs, height, width = features.shape
    down, across = -(-height // TILE), -(-width // TILE)
    framed = F.pad(
        features.permute(0, 2, 3, 1), (0, 0, 1, TILE * across + 1 - width, 1, TILE * down + 1 - height)
    ).contiguous()
    image, row, column, channel = framed.stride()
    windows = framed.as_strided(
        (TILE + 2, TILE + 2, images, down, across, inputs), (row, column, image, TILE * row, TILE * column, channel)
    )
    placed = _both_ways(_INPUT, features) @ windows.reshape(PLACES, -1)
    products = torch.bmm(placed.view(PLACES, -1, inputs), kernel)
    squares = (_both_ways(_OUTPUT, features) @ products.view(PLACES, -1)).view(
        TILE, TILE, images, down, across, len(bias)
    )
    whole = squares.permute(2, 3, 0, 4, 1, 5).reshape(images, TILE * down, TILE * across, len(bias))
    return whole[:, :height, :width].add_(bias).permute(0, 3, 1, 2)


def _both_ways(matrix: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    """Return the matrix that transforms rows and columns at once."""
    one_way = torch.tensor(matrix, dtype=like.dtype, device=like.device)
    return torch.kron(one_way, one_way)
