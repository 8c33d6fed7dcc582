"""Scores of one box per expression."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from vpp_plugins.boxes import Box, box_iou
from vpp_plugins.errors import VPPError


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
