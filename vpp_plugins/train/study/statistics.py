"""How sure a study is: t-intervals over seeds, paired differences over images, Holm's correction, and curves.

Rows about one image stand or fall together, so images are drawn again, not rows; and within each seed, since two runs
of one arm are two models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from jaxtyping import Float, Int

from vpp_plugins.evaluate import drawn_means

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; `low` and `high` are None where one value alone tells nothing."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference; `p_value` is that of there being none."""

    p_value: float


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean of one value per seed and its t-interval, as if seeds drew from a normal distribution."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - reach, mean + reach)


def paired_difference(
    differences: Sequence[Float[np.ndarray, "rows"]], images: Sequence[Int[np.ndarray, "rows"]], *, seed: int = 0
) -> Difference:
    """Return the mean over seeds of the mean difference of rows, with its bootstrap percentile interval.

    Each seed has its differences and the number of each row's image; within it, as many images as there are are drawn.
    The p-value is the share of draws which lie as far from the mean as that does from 0, one draw added.
    """
    generator = np.random.default_rng(seed)
    mean = fmean(float(one.mean()) for one in differences)
    each = zip(differences, images, strict=True)
    drawn = np.mean(
        [drawn_means(one.tolist(), member.tolist(), generator, resamples=RESAMPLES) for one, member in each], axis=0
    )
    low, high = np.percentile(drawn, [2.5, 97.5])
    beyond = int((np.abs(drawn - mean) >= abs(mean) - 1e-12).sum())
    return Difference(mean, float(low), float(high), (beyond + 1) / (len(drawn) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all of them together (Holm 1979), in the same order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def curve_at(x: float, across: Sequence[float], up: Float[np.ndarray, "points rows"]) -> Float[np.ndarray, "rows"]:
    """Return each row's value at x, on straight lines between the points of its curve, level beyond them."""
    after = int(np.searchsorted(across, x))
    if after == 0 or after == len(across):
        value: np.ndarray = up[min(after, len(across) - 1)]
        return value
    share = (x - across[after - 1]) / (across[after] - across[after - 1])
    between: np.ndarray = (1 - share) * up[after - 1] + share * up[after]
    return between


def mean_of_curve(
    low: float, high: float, across: Sequence[float], up: Float[np.ndarray, "points rows"]
) -> Float[np.ndarray, "rows"]:
    """Return the area under each row's curve from low to high, divided by their distance: 0 to 1 as the values are."""
    points = [low, *(x for x in across if low < x < high), high]
    values = np.stack([curve_at(x, across, up) for x in points])
    area: np.ndarray = np.trapezoid(values, points, axis=0) / (high - low)
    return area
