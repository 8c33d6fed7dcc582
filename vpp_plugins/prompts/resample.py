"""Antialiased bilinear resampling of any window of a square image, as two small matrices.

One code path serves whole images, tiles of an image (their window is a part of it) and letterboxed images (their window
reaches beyond it). For the whole square it equals torch's `interpolate(mode="bilinear", antialias=True)`.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Window = tuple[float, float, float, float]
"""(left, top, right, bottom) of an encoder input, in units of the square that carries the axes: (0, 0, 1, 1) is all."""

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def resample(
    square: Float[Tensor, "channels size size"], size_hw: tuple[int, int], window: Window = WHOLE
) -> Float[Tensor, "channels height width"]:
    """Return what `window` of the square looks like at `size_hw`; zero beyond the square. Differentiable."""
    side = square.shape[-1]
    left, top, right, bottom = window
    if size_hw == (side, side) and window == WHOLE:
        return square
    weights = (
        _weights if torch.compiler.is_compiling() else _cached_weights
    )  # dynamo warns of caches and looks past them
    rows = torch.from_numpy(weights(size_hw[0], side, top, bottom)).to(square)
    columns = torch.from_numpy(weights(size_hw[1], side, left, right)).to(square)
    return rows @ square @ columns.T


def resample_each(
    square: Float[Tensor, "channels size size"], size_hw: tuple[int, int], windows: Float[Tensor, "windows 4"]
) -> Float[Tensor, "windows channels height width"]:
    """Return what each window shows, like `resample`; no number leaves its device, so nothing waits for a GPU."""
    side = square.shape[-1]
    left, top, right, bottom = windows.unbind(1)
    rows = _weights_on_device(size_hw[0], side, top, bottom).to(square)
    columns = _weights_on_device(size_hw[1], side, left, right).to(square)
    return rows[:, None] @ square @ columns[:, None].mT


def _weights_on_device(
    length: int, source: int, start: Float[Tensor, " windows"], stop: Float[Tensor, " windows"]
) -> Float[Tensor, "windows length source"]:
    """The torch twin of `_weights`, for several windows."""
    scale = (source * (stop - start) / length)[:, None]
    places = torch.arange(length, device=start.device, dtype=start.dtype) + 0.5
    centres = source * start[:, None] + places * scale
    cells = torch.arange(source, device=start.device, dtype=start.dtype) + 0.5
    weights = (1 - (cells - centres[..., None]).abs() / scale[..., None].clamp(min=1)).clamp(min=0)
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-12)
    inside = (centres > 0) & (centres < source)
    return weights * inside[..., None]


def _weights(length: int, source: int, start: float, stop: float) -> Float[np.ndarray, "length source"]:
    """Triangle-filter weights: row i takes the mean of the source cells around the centre of output pixel i."""
    scale = source * (stop - start) / length
    centres = source * start + (np.arange(length) + 0.5) * scale
    cells = np.arange(source) + 0.5
    weights = np.maximum(1 - np.abs(cells - centres[:, None]) / max(scale, 1.0), 0)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
    inside = (centres > 0) & (centres < source)
    return (weights * inside[:, None]).astype(np.float32)


# Arrays, because a cached tensor would keep the inference mode or the default device of the first call.
_cached_weights = functools.lru_cache(maxsize=256)(_weights)


def outside_graphs(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function that reads numbers off tensors: torch.compile runs it in Python, between two graphs.

    What `torch.compiler.disable` does, which takes a second to import the compiler where it stands.
    """

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run
