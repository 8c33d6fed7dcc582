"""How protocols compare two boxes: three ways that differ in the last digits, or by a pixel."""

from collections.abc import Callable, Mapping

import numpy as np

from vpp_plugins.boxes import Box, box_iou


def single(a: Box, b: Box) -> float:
    """Return IoU in single precision and in the order of torchvision's `box_iou`, as the published scripts compute it.

    Corners are not reordered: an inverted box overlaps nothing.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a box of 1e300 is infinite in single precision
        first, second = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
        sides = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None)
        overlap = sides[0] * sides[1]
        union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - overlap
    return float(overlap / union) if overlap > 0 else 0.0


def inclusive(a: Box, b: Box) -> float:
    """Return IoU with every box counted one pixel wider and higher, as MiniGPT-v2's script does."""
    return box_iou(*((x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in (a, b)))


OVERLAPS: Mapping[str, Callable[[Box, Box], float]] = {"exact": box_iou, "single": single, "inclusive": inclusive}
