"""From raw answers to a result: every answer judged under a protocol, and the figures that are reported."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from vpp_plugins.boxes import BoxCodec, BoxStatus
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.intervals import interval, share_interval
from vpp_plugins.evaluate.protocol import Protocol
from vpp_plugins.evaluate.readers import Reading
from vpp_plugins.evaluate.rows import image_id

THRESHOLDS = (0.5, 0.75, 0.9)
CURVE = tuple(step / 20 for step in range(1, 20))
"""Thresholds of the curve; not 0, which every answer reaches, also one without a box."""


@dataclass(frozen=True)
class Judged:
    """One answer, what a protocol read in it, and how far that overlaps what is true."""

    answer: Answer
    reading: Reading
    iou: float
    correct: bool
    """At the threshold 0.5."""


def judge(answers: Sequence[Answer], protocol: Protocol, codec: BoxCodec) -> list[Judged]:
    """Read every answer under a protocol; answers of unreadable images hold no box."""
    judged = []
    for answer in answers:
        reading = (
            Reading(None, BoxStatus.UNPARSABLE) if answer.error else protocol.read(answer.text, answer.meta, codec)
        )
        iou = protocol.iou(reading, answer.box, answer.meta, codec)
        judged.append(Judged(answer, reading, iou, protocol.is_correct(iou)))
    return judged


def summarise(judged: Sequence[Judged], protocol: Protocol) -> dict[str, Any]:
    """Return the figures of an evaluation as JSON values.

    Accuracies and IoU are 0 to 1. Each has a 95 % interval, for which images are drawn again, not rows; an accuracy
    that is the same in every image has Wilson's, and says so. The same answers give the same figures, whatever their
    order of arrival.
    """
    if not judged:
        raise VPPError("there is nothing to score: the evaluation holds no answer.")
    images = [image_id(one.answer.image, one.answer.id) for one in judged]
    accuracies = {
        f"acc_{round(100 * threshold)}": asdict(share_interval(_hits(judged, protocol, threshold), images))
        for threshold in THRESHOLDS
    }
    statuses = Counter("unreadable" if one.answer.error else str(one.reading.status) for one in judged)
    return {
        "rows": len(judged),
        "images": len(set(images)),
        **accuracies,
        "mean_iou": asdict(interval([one.iou for one in judged], images)),
        "statuses": {name: statuses.get(name, 0) for name in [*map(str, BoxStatus), "unreadable"]},
        "by_kind": _by(judged, lambda one: one.answer.kind),
        "by_category": _by(judged, lambda one: one.answer.category),
        "curve": [[threshold, fmean(_hits(judged, protocol, threshold))] for threshold in CURVE],
    }


def _hits(judged: Sequence[Judged], protocol: Protocol, threshold: float) -> list[float]:
    return [float(protocol.is_correct(one.iou, threshold)) for one in judged]


def _by(judged: Sequence[Judged], key: Callable[[Judged], str]) -> dict[str, dict[str, float]]:
    """Return count and figures per named group; rows without a name are left out."""
    return {
        name: {
            "rows": len(group),
            "acc_50": fmean(float(one.correct) for one in group),
            "mean_iou": fmean(one.iou for one in group),
        }
        for name in sorted({key(one) for one in judged} - {""})
        if (group := [one for one in judged if key(one) == name])
    }
