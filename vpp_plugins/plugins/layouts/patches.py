"""Pixels as rows of flattened patches: brought back to images, given the axes, and flattened again."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts import Overlay, Window, outside_graphs

Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class Patches:
    """Patches of all images one below the other: Qwen-VL, GLM-4V, Kimi-VL and their kin.

    The defaults are raster rows of colour planes. `pixels` is `[patches, values]`, or `[patches, ...]` with the values
    in any number of axes.
    """

    grid: str = "grid_thw"
    """The argument with each image's counts of patches: `[images, 3]` frames, rows, columns, or `[images, 2]`."""
    merge: int | str = 1
    """Patches come in blocks of merge x merge, in reading order of the blocks; the side, or the argument that has one
    for each image. 1 is plain raster order."""
    columns: str = "c t y x"
    """Order of a patch's values: colour, repeated frame, pixel row, pixel column, slowest first."""
    frames: int = 1
    """How often a patch of a still image repeats it in time: the temporal patch size."""

    def __call__(
        self,
        pixels: Float[Tensor, "patches *values"],
        overlay: Overlay,
        windows: Sequence[Window] | None,
        call: Mapping[str, Any],
    ) -> Float[Tensor, "patches *values"]:
        """Lay the axes over every image's patches; rows of videos, of more than one grid frame, stay as they are."""
        grids = [(1, *row)[-3:] for row in _numbers(call, self.grid)]
        counts = [math.prod(grid) for grid in grids]
        if sum(counts) != len(pixels):
            raise VPPError(f"{self.grid} names {sum(counts)} patches, but {len(pixels)} came: pass it with its pixels.")
        parts = list(pixels.flatten(1).split(counts))
        still = [index for index, grid in enumerate(grids) if grid[0] == 1]
        merges = self._merges(call, len(grids))
        images = [_unpatch(parts[index], grids[index][1:], self.columns, merges[index], self.frames) for index in still]
        for index, laid in zip(still, _lay(images, overlay, windows), strict=True):
            parts[index] = _patch(laid, grids[index][1:], self.columns, merges[index], self.frames)
        return torch.cat(parts).reshape(pixels.shape)

    def _merges(self, call: Mapping[str, Any], images: int) -> list[int]:
        return [self.merge] * images if isinstance(self.merge, int) else _numbers(call, self.merge)


@dataclass(frozen=True)
class PaddedPatches:
    """Raster patches of one image per row, padded to the longest: Gemma 4, LFM2-VL, Molmo 2, Kosmos-2.5."""

    grid: str | None = None
    """The argument with each image's rows and columns of patches, `[images, 2]`, or with each patch's column and
    row, `[images, patches, 2]`, negative on padding. None: squares without padding."""
    columns: str = "t y x c"
    """Order of a patch's values: pixel row, pixel column, colour, slowest first; `t` is a single frame."""
    numbered: bool = False
    """Whether a patch's first two values are its row and column, from 1, instead; 0 on padding."""

    def __call__(
        self,
        pixels: Float[Tensor, "images patches values"],
        overlay: Overlay,
        windows: Sequence[Window] | None,
        call: Mapping[str, Any],
    ) -> Float[Tensor, "images patches values"]:
        """Lay the axes over every image's patches; padding stays as it is."""
        skip = 2 if self.numbered else 0
        grids = self._grids(pixels, call)
        if len(grids) != len(pixels):
            raise VPPError(f"{self.grid} has {len(grids)} grids for {len(pixels)} images: pass one for each.")
        images = [
            _unpatch(rows[: math.prod(grid), skip:], grid, self.columns, 1, 1)
            for rows, grid in zip(pixels, grids, strict=True)
        ]
        out = []  # nothing is written in place: autograd needs what was there
        for rows, grid, laid in zip(pixels, grids, _lay(images, overlay, windows), strict=True):
            content, padding = rows.split([math.prod(grid), len(rows) - math.prod(grid)])
            patched = torch.cat([content[:, :skip], _patch(laid, grid, self.columns, 1, 1)], dim=1)
            out.append(torch.cat([patched, padding]))
        return torch.stack(out)

    def _grids(self, pixels: Float[Tensor, "images patches values"], call: Mapping[str, Any]) -> list[Grid]:
        if self.numbered:
            return [(int(row), int(column)) for row, column in pixels[..., :2].amax(1).tolist()]
        if self.grid is None:
            side = math.isqrt(pixels.shape[1])
            return [(side, side)] * len(pixels)
        given = _asked(call, self.grid)
        if given.ndim == 3:
            given = given.amax(1).flip(-1) + 1
        return [(rows, columns) for rows, columns in given.tolist()]


def patch_strip(
    pixels: Float[Tensor, "1 3 side length"],
    overlay: Overlay,
    windows: Sequence[Window] | None,
    call: Mapping[str, Any],
) -> Float[Tensor, "1 3 side length"]:
    """All patches beside one another in one long image, as MiniCPM-V takes them; `target_sizes` has the grids."""
    rows = rearrange(pixels, "1 c y (n x) -> n (c y x)", x=pixels.shape[2])
    laid = Patches(grid="target_sizes")(rows, overlay, windows, call)
    return rearrange(laid, "n (c y x) -> 1 c y (n x)", c=3, y=pixels.shape[2])


def _asked(call: Mapping[str, Any], name: str) -> Tensor:
    if call.get(name) is None:
        raise VPPError(f"the vision encoder was called without '{name}', which says how its patches lie: pass it.")
    return torch.as_tensor(call[name])


@outside_graphs
def _numbers(call: Mapping[str, Any], name: str) -> list[Any]:
    return _asked(call, name).tolist()


def _lay(
    images: Sequence[Float[Tensor, "_ 3 _ _"]], overlay: Overlay, windows: Sequence[Window] | None
) -> list[Float[Tensor, "_ 3 _ _"]]:
    """Lay the axes over each image, neighbours of one size together."""
    if windows is not None and len(windows) != len(images):
        raise VPPError(f"one window per image is expected, but {len(windows)} came for {len(images)} images.")
    laid: list[Tensor] = []
    for shape, group in itertools.groupby(images, key=lambda image: image.shape):
        stack = torch.cat(list(group))
        count = len(stack) // shape[0]
        own = None if windows is None else windows[len(laid) : len(laid) + count]
        repeated = None if own is None else [window for window in own for _ in range(shape[0])]
        laid.extend(overlay.blend(stack, repeated).split(shape[0]))
    return laid


def _unpatch(
    rows: Float[Tensor, "patches values"], grid: Grid, columns: str, merge: int, frames: int
) -> Float[Tensor, "frames 3 height width"]:
    """Put an image together; its patches are square, so their side follows from how many values they have."""
    side = math.isqrt(rows.shape[1] // (3 * frames))
    sizes = {"c": 3, "t": frames, "y": side, "x": side, "a": merge, "b": merge, "h": grid[0] // merge}
    return rearrange(rows, f"(h w a b) ({columns}) -> t c (h a y) (w b x)", **sizes)


def _patch(
    image: Float[Tensor, "frames 3 height width"], grid: Grid, columns: str, merge: int, frames: int
) -> Float[Tensor, "patches values"]:
    """Take an image apart again."""
    sizes = {"a": merge, "b": merge, "h": grid[0] // merge, "w": grid[1] // merge}
    return rearrange(image, f"t c (h a y) (w b x) -> (h w a b) ({columns})", **sizes)
