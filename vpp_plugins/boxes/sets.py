"""Several boxes against several: which pair with which, one to one, and what cannot be a set."""

from bisect import bisect
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from vpp_plugins.boxes.frames import BoxLike


def count_pairs(same: Bool[np.ndarray, "found true"]) -> int:
    """Return the most pairs of boxes that count as the same, each box in one pair at most."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(same, maximize=True)
    return int(same[rows, columns].sum())


def least_overlap(overlaps: Float[np.ndarray, "found true"]) -> float:
    """Return the smallest overlap of the best pairing of two sets, 0 where one of them has more boxes.

    At any threshold up to it every box of the one finds a box of the other: F1 there is 1.
    """
    count, true = overlaps.shape
    if count != true:
        return 0.0
    steps = np.unique(overlaps)  # rising; the smallest always allows a pairing
    return float(steps[bisect(steps, 0, lo=1, key=lambda step: count - count_pairs(overlaps >= step)) - 1])


def count_repeats(boxes: Sequence[BoxLike]) -> int:
    """Return how many boxes of a set equal one before them."""
    return len(boxes) - len({tuple(map(float, box)) for box in boxes})
