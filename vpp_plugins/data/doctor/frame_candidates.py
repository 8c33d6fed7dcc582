"""The ways in which boxes' numbers may be meant: where an image's corners lie in them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from vpp_plugins.boxes import BoxCodec, Rounded
from vpp_plugins.data.record import PATCH, BoxUnit, Order

Columns = Float[np.ndarray, "n 4"]
Sizes = Float[np.ndarray, "n 2"]
"""(width, height) of each box's image; NaN where it is not known."""


@dataclass(frozen=True)
class Resize:
    """How a processor resized the images in whose pixels the boxes are counted.

    square: to a square of that side. long side: that side, the shape kept. patches: at most so many squares of 28
    pixels, sides rounded to 28, as Qwen's processors do.
    """

    to: Literal["square", "long side", "patches"]
    number: int

    def __str__(self) -> str:
        return {
            "square": f"resized to {self.number} x {self.number}",
            "long side": f"resized to a long side of {self.number}",
            "patches": f"resized to at most {self.number} patches of 28",
        }[self.to]

    def __call__(self, sizes_wh: Sizes) -> Sizes:
        """Return the sizes after resizing."""
        if self.to == "square":
            return np.full_like(sizes_wh, self.number)
        if self.to == "long side":
            scale: Sizes = self.number / sizes_wh.max(axis=1, keepdims=True)
            return np.asarray(sizes_wh * scale)
        rounded = np.maximum(np.round(sizes_wh / PATCH), 1)
        shrink = np.sqrt(sizes_wh.prod(axis=1, keepdims=True) / (self.number * PATCH**2))
        shrunk = np.maximum(np.floor(sizes_wh / np.maximum(shrink, 1) / PATCH), 1)
        patches: Sizes = np.where(rounded.prod(axis=1, keepdims=True) > self.number, shrunk, rounded)
        return patches * PATCH


@dataclass(frozen=True)
class Candidate:
    """One way to read the numbers: a unit, and for pixels of resized images how they were resized."""

    unit: BoxUnit
    resize: Resize | None = None

    def __str__(self) -> str:
        return f"{self.unit.order} in pixels of the image {self.resize}" if self.resize else str(self.unit)

    @property
    def prior(self) -> float:
        """The logarithm of how rare the convention is, before any number is seen."""
        order = {"xyxy": 0.0, "xywh": -2.0, "cxcywh": -6.0, "yxyx": -8.0}[self.unit.order]
        return order - 8.0 * (self.resize is not None)

    def region(self, sizes_wh: Sizes) -> Columns:
        """Return where each image lies in the numbers: left, top, width, height."""
        if self.resize is not None:
            return np.concatenate([np.zeros_like(sizes_wh), self.resize(sizes_wh)], axis=1)
        full = self.unit.full
        if self.unit.frame == "square":
            side = sizes_wh.max(axis=1, keepdims=True)
            scale = 1.0 if full is None else full / side
            return np.concatenate([(side - sizes_wh) // 2 * scale, sizes_wh * scale], axis=1)
        lengths = sizes_wh if full is None else np.full_like(sizes_wh, full)
        return np.concatenate([np.zeros_like(sizes_wh), lengths], axis=1)

    def corners(self, numbers: Columns) -> Columns:
        """Return x1, y1, x2, y2, still in the file's unit."""
        if self.unit.order == "yxyx":
            return numbers[:, [1, 0, 3, 2]]
        if self.unit.order == "xywh":
            return np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], axis=1)
        if self.unit.order == "cxcywh":
            half = numbers[:, 2:] / 2
            return np.concatenate([numbers[:, :2] - half, numbers[:, :2] + half], axis=1)
        return numbers

    def pixels(self, numbers: Columns, sizes_wh: Sizes) -> Columns:
        """Return the boxes as xyxy pixels of the original images, neither cut nor reordered."""
        region = self.region(sizes_wh)
        offsets: Columns = np.tile(region[:, :2], 2)
        scales: Columns = np.tile(sizes_wh / region[:, 2:], 2)
        return np.asarray((self.corners(numbers) - offsets) * scales)


def declared_candidate(unit: BoxUnit | BoxCodec) -> Candidate | None:
    """Return what a format or a family says of its boxes, or None for tokens that are no four coordinates."""
    if isinstance(unit, BoxUnit):
        if unit.resized is None:
            return Candidate(unit)
        return Candidate(BoxUnit("image", None, unit.order), Resize("patches", unit.resized.most // PATCH**2))
    scale = unit.scale
    if scale.per_box != 4:
        return None
    order: Order = "yxyx" if isinstance(scale, Rounded) and scale.y_first else "xyxy"
    if scale.full is None:
        return Candidate(BoxUnit("image", None, order), Resize("patches", 1280))
    return Candidate(BoxUnit(unit.frame, float(scale.full), order))


def all_candidates() -> list[Candidate]:
    """Return every convention that public data are known to use."""
    orders: tuple[Order, ...] = ("xyxy", "xywh", "yxyx", "cxcywh")
    plain = [BoxUnit("image", full, order) for order in orders for full in (None, 1.0, 100.0, 1000.0)]
    padded = [BoxUnit("square", full, order) for order in orders for full in (None, 1.0, 100.0, 1000.0)]
    sides = (224, 336, 384, 448, 512, 640, 768, 896, 1024, 1344)
    resizes = [Resize("square", side) for side in sides] + [Resize("long side", side) for side in sides]
    resizes += [Resize("patches", number) for number in (256, 512, 768, 1280)]
    return [Candidate(unit) for unit in plain + padded] + [Candidate(BoxUnit(), by) for by in resizes]
