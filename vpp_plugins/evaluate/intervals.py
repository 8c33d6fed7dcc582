"""How sure a number is: intervals of one evaluation, and tests between two of the same rows.

Rows of one image are not independent of each other, so images are what is drawn again, not rows.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from vpp_plugins.errors import VPPError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean, the 95 % interval around it, and how that was found."""

    mean: float
    low: float
    high: float
    method: Literal["bootstrap", "Wilson"] = "bootstrap"


@dataclass(frozen=True)
class Paired:
    """B minus A on the same rows.

    `p_value` is McNemar's exact test for values that are 0 or 1; it is None for others.
    """

    difference: Interval
    only_a: int
    only_b: int
    p_value: float | None


def interval(values: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0) -> Interval:
    """Return the mean of the values and its bootstrap percentile interval; values of one group are drawn together."""
    if not values or len(values) != len(groups):
        raise VPPError(f"one group per value is expected, but {len(groups)} came for {len(values)} values.")
    means = _resampled_means(np.asarray(values, dtype=float), groups, seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def share_interval(hits: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0) -> Interval:
    """Return the share of hits, each 0 or 1, and its interval.

    Where all groups have the same share, as at 0 of n and n of n, drawing them again tells nothing: then it is Wilson's
    score interval (doi 10.2307/2276774) with one trial per group, since the rows of a group may stand or fall together.
    """
    drawn = interval(hits, groups, seed=seed)
    if drawn.low < drawn.high:
        return drawn
    share, trials, z = drawn.mean, len(set(groups)), 1.96
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach), "Wilson")


def paired(a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0) -> Paired:
    """Compare two lists of values of the same rows, in the same order."""
    if len(a) != len(b):
        raise VPPError(f"two evaluations of the same rows are expected, but one has {len(a)} and the other {len(b)}.")
    from scipy.stats import binomtest

    difference = interval([right - left for left, right in zip(a, b, strict=True)], groups, seed=seed)
    only_a = sum(left > right for left, right in zip(a, b, strict=True))
    only_b = sum(right > left for left, right in zip(a, b, strict=True))
    binary = {*a, *b} <= {0.0, 1.0}
    changed = only_a + only_b
    p_value = (binomtest(only_b, changed).pvalue if changed else 1.0) if binary else None
    return Paired(difference, only_a, only_b, None if p_value is None else float(p_value))


def _resampled_means(
    values: Float[np.ndarray, " rows"], groups: Sequence[Hashable], seed: int
) -> Float[np.ndarray, " resamples"]:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member = np.array([numbers[group] for group in groups])
    sums, counts = np.bincount(member, values), np.bincount(member)
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):  # one at a time: all at once would take rows x 2000 numbers
        drawn = random.integers(0, len(sums), len(sums))
        means[resample] = sums[drawn].sum() / counts[drawn].sum()
    return means
