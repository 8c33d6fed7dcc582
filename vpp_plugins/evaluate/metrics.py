"""Numbers of an evaluation, and how sure they are: scores of boxes, intervals, and tests between two evaluations.

Rows of one image are not independent of each other, so images are what is drawn again, not rows.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from vpp_plugins.boxes import Box, box_fault, box_iou, generalized_box_iou, shown_box
from vpp_plugins.errors import VPPError

RESAMPLES = 2000
_DRAWN = 5_000_000
"""Numbers that are drawn at a time."""


@dataclass(frozen=True)
class Scores:
    """Accuracy at three IoU thresholds (at least as large counts as correct) and mean IoU, each 0 to 1."""

    count: int
    acc_50: float
    acc_75: float
    acc_90: float
    mean_iou: float
    without_box: int
    """Answers that held no box; each counts as IoU 0."""


def score(predicted: Sequence[Box | None], truth: Sequence[Box]) -> Scores:
    """Compare each predicted xyxy box, or None where the answer held none, with its true box."""
    if len(predicted) != len(truth):
        raise VPPError(f"one prediction per true box is expected, but {len(predicted)} came for {len(truth)}.")
    if not truth:
        raise VPPError("there are no boxes to score: give at least one.")
    for right in truth:
        if fault := box_fault(right):
            raise VPPError(f"the true box {shown_box(right)} {fault}, so that no answer could be right: leave it out.")
    ious = [0.0 if box is None else box_iou(box, right) for box, right in zip(predicted, truth, strict=True)]
    acc_50, acc_75, acc_90 = (sum(iou >= threshold for iou in ious) / len(ious) for threshold in (0.5, 0.75, 0.9))
    return Scores(
        count=len(ious),
        acc_50=acc_50,
        acc_75=acc_75,
        acc_90=acc_90,
        mean_iou=fmean(ious),  # rounded once: a sharded evaluation gives the same number in any order
        without_box=sum(box is None for box in predicted),
    )


def iou_text(iou: float) -> str:
    """Return an IoU, 0 to 1, with two decimals and rounded down: 0.497 is a miss at 0.5, so it reads 0.49."""
    return f"{math.floor(100 * iou + 1e-9) / 100:.2f}"


def single_precision_iou(a: Box, b: Box) -> float:
    """Return IoU in single precision and in the order of torchvision's `box_iou`, as the published scripts compute it.

    Corners are not reordered: an inverted box overlaps nothing.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a box of 1e300 is infinite in single precision
        first, second = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
        sides = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None)
        overlap = sides[0] * sides[1]
        union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - overlap
    return float(overlap / union) if overlap > 0 else 0.0


OVERLAPS: Mapping[str, Callable[[Box, Box], float]] = {
    "exact": box_iou,
    "single": single_precision_iou,
    # every box counted one pixel wider and higher, as MiniGPT-v2's script does
    "inclusive": lambda a, b: box_iou(*((x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in (a, b))),
    "generalised": lambda a, b: max(0.0, generalized_box_iou(a, b)),
}
"""How protocols compare two boxes: IoU in ways that differ in the last digits, or by a pixel; GIoU, 0 if negative."""


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
    drawn = drawn_means(values, groups, np.random.default_rng(seed))
    low, high = np.percentile(drawn, [2.5, 97.5])  # scipy's own differ in the last digit
    return Interval(float(np.mean(values)), float(low), float(high))


def drawn_means(
    values: Sequence[float], groups: Sequence[Hashable], generator: np.random.Generator, *, resamples: int = RESAMPLES
) -> Float[np.ndarray, " resamples"]:
    """Return the means of bootstrap samples in which values of one group are drawn together."""
    if not len(values) or len(values) != len(groups):
        raise VPPError(f"one group per value is expected, but {len(groups)} came for {len(values)} values.")
    from scipy.stats import bootstrap

    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) == 1:
        return np.full(resamples, np.mean(values))
    member = np.array([numbers[group] for group in groups])
    drawn = bootstrap(
        (np.bincount(member, np.asarray(values, dtype=float)), np.bincount(member)),
        _mean_of_groups,
        paired=True,
        n_resamples=resamples,
        batch=max(1, _DRAWN // len(numbers)),
        method="percentile",
        rng=generator,
    )
    return np.asarray(drawn.bootstrap_distribution)


def _mean_of_groups(
    sums: Float[np.ndarray, "*resamples groups"], counts: Int[np.ndarray, "*resamples groups"], axis: int
) -> Float[np.ndarray, "*resamples"]:
    return sums.sum(axis) / counts.sum(axis)


def share_interval(hits: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0) -> Interval:
    """Return the share of hits, each 0 or 1, and its interval.

    Where all groups have the same share, as at 0 of n and n of n, drawing them again tells nothing: then it is Wilson's
    score interval (doi 10.2307/2276774) with one trial per group, since the rows of a group may stand or fall together.
    """
    drawn = interval(hits, groups, seed=seed)
    if drawn.low < drawn.high:
        return drawn
    share, trials, z = drawn.mean, len(set(groups)), 1.96  # by hand: scipy's wants whole hits, and has half an image
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
