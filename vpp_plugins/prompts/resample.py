"""Antialiased bilinear resampling of any window of a square picture, as two small matrices.

One code path serves whole images, tiles of an image (their window is a part of it) and letterboxed images (their window
reaches beyond it). For the whole square it equals torch's `interpolate(mode="bilinear", antialias=True)`.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

Window = tuple[float, float, float, float]
"""(left, top, right, bottom) of an encoder input, in units of the square that carries the axes: the whole is (0, 0, 1, 1)."""

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


def resample(
    square: Float[Tensor, "channels size size"], size_hw: tuple[int, int], window: Window = WHOLE
) -> Float[Tensor, "channels height width"]:
    """Return what `window` of the square looks like at `size_hw`; zero beyond the square. Differentiable."""
    side = square.shape[-1]
    left, top, right, bottom = window
    if size_hw == (side, side) and window == WHOLE:
        return square
    rows = _weights(size_hw[0], side, top, bottom).to(square)
    columns = _weights(size_hw[1], side, left, right).to(square)
    return rows @ square @ columns.T


@functools.lru_cache(maxsize=256)
def _weights(length: int, source: int, start: float, stop: float) -> Float[Tensor, "length source"]:
    """Triangle-filter weights: row i takes the mean of the source cells around the centre of output pixel i."""
    scale = source * (stop - start) / length
    centres = source * start + (torch.arange(length, dtype=torch.float64) + 0.5) * scale
    cells = torch.arange(source, dtype=torch.float64) + 0.5
    weights = (1 - (cells - centres[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    weights /= weights.sum(1, keepdim=True).clamp(min=1e-12)
    inside = (centres > 0) & (centres < source)
    return (weights * inside[:, None]).float()
