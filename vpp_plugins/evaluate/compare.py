"""Why two evaluations of the same rows differ: by chance, by protocol, by frame and unit, or by what they find."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vpp_plugins.boxes import BoxCodec, BoxStatus, Frame, Rounded
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.metrics import Paired, paired
from vpp_plugins.evaluate.protocol import Protocol, write_alike
from vpp_plugins.evaluate.results import SHOWN, Evaluation, answer_card, facts, figures_tables, judge, summarise
from vpp_plugins.evaluate.rows import Row, image_id
from vpp_plugins.evaluate.settings import PARTS, differences
from vpp_plugins.plugins import box_codec
from vpp_plugins.report import write_page

TELLING = 0.02
"""A part of a gap smaller than this, 0 to 1, is not mentioned."""


@dataclass(frozen=True)
class Comparison:
    """Two evaluations row by row, and sentences that say what lies behind their gap."""

    a: Evaluation
    b: Evaluation
    accuracy: Paired
    """Of Acc@0.5."""
    mean_iou: Paired
    by_kind: dict[str, tuple[int, float, float]]
    """Rows, Acc@0.5 of A and of B, for every kind of expression."""
    reasons: list[str]


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations of the same rows; raises VPPError where their rows are not the same."""
    if a.settings["rows_sha256"] != b.settings["rows_sha256"]:
        raise VPPError(
            f"'{a.folder}' and '{b.folder}' evaluated different rows ({len(a.judged)} and {len(b.judged)}): evaluate "
            "both on the same data."
        )
    images = [image_id(one.answer.image, one.answer.id) for one in a.judged]
    accuracy = paired([float(one.correct) for one in a.judged], [float(one.correct) for one in b.judged], images)
    mean_iou = paired([one.iou for one in a.judged], [one.iou for one in b.judged], images)
    return Comparison(a, b, accuracy, mean_iou, _by_kind(a, b), _reasons(a, b, accuracy))


def write_comparison(comparison: Comparison, path: str | Path, rows: Sequence[Row] | None = None) -> Path:
    """Write the page of two evaluations side by side, with the sentences that explain their gap."""
    a, b, gap = comparison.a, comparison.b, comparison.accuracy
    pairs = [(one, other) for one, other in zip(a.judged, b.judged, strict=True) if one.correct != other.correct]
    apart = sorted(pairs, key=lambda pair: -abs(pair[0].iou - pair[1].iou))[:SHOWN]
    images = {row.id: row for row in rows or ()}
    return write_page(
        path,
        "comparison",
        title="Two evaluations",
        names=[f"{side.title}, {side.protocol.name}" for side in (a, b)],
        gap=f"{100 * gap.difference.mean:+.1f}",
        interval=f"{100 * gap.difference.low:+.1f} to {100 * gap.difference.high:+.1f}",
        only_a=gap.only_a,
        only_b=gap.only_b,
        p_value=f"{gap.p_value:.2g}",
        reasons=comparison.reasons,
        kinds=[
            [kind, count, f"{100 * of_a:.1f}", f"{100 * of_b:.1f}"]
            for kind, (count, of_a, of_b) in comparison.by_kind.items()
        ],
        apart=[answer_card(images, *pair) for pair in apart],
        facts=[facts(side.settings, side.protocol) for side in (a, b)],
        **figures_tables({name: summarise(side.judged, side.protocol) for name, side in (("A", a), ("B", b))}),
    )


def other_readings(answers: Sequence[Answer], protocol: Protocol, codec: BoxCodec) -> dict[str, float]:
    """Return Acc@0.5 of the same answers with their numbers read in other frames and units.

    Where one of them fits far better than the family's own, the model was asked, trained or read in another frame.
    """
    if codec.text is None or not isinstance(codec.scale, Rounded):
        return {}
    found = {}
    readings: list[tuple[str, Frame, int | None]] = [
        *((f"0-{full} on the original image", "image", full) for full in (1, 100, 999, 1000)),
        *((f"0-{full} on the padded image", "square", full) for full in (1, 100, 999, 1000)),
        ("pixels on the resized image", "image", None),
    ]
    by_codec = replace(protocol, reader="codec", truth="pixels")
    for name, frame, full in readings:
        if full is not None or all(answer.processed_size_hw is not None for answer in answers):
            changed = replace(codec, frame=frame, unit=name.split()[0], scale=replace(codec.scale, full=full))
            found[name] = fmean(one.correct for one in judge(answers, by_codec, changed))
    return found


def _by_kind(a: Evaluation, b: Evaluation) -> dict[str, tuple[int, float, float]]:
    kinds = sorted({one.answer.kind for one in a.judged} - {""})
    places = {kind: [i for i, one in enumerate(a.judged) if one.answer.kind == kind] for kind in kinds}
    return {
        kind: (len(rows), fmean(a.judged[i].correct for i in rows), fmean(b.judged[i].correct for i in rows))
        for kind, rows in places.items()
    }


def _reasons(a: Evaluation, b: Evaluation, accuracy: Paired) -> list[str]:
    reasons = []
    gap = accuracy.difference
    if not write_alike(a.codec, b.codec):
        reasons.append(f"The boxes are read as two families': A's as '{a.codec.family}', B's as '{b.codec.family}'.")
    if gap.low == gap.high == 0:
        reasons.append("A and B are right about the same rows.")
    elif gap.low <= 0 <= gap.high:
        reasons.append(
            f"The gap of {_points(gap.mean)} may be chance: its 95 % interval is {_points(gap.low)} to "
            f"{_points(gap.high)}."
        )
    if a.protocol != b.protocol:
        reasons += [
            f"The protocols differ. Under '{under.name}', A has {_percent(on_a)} and B has {_percent(on_b)}."
            for under in (a.protocol, b.protocol)
            if (on_a := _accuracy(a, under)) is not None and (on_b := _accuracy(b, under)) is not None
        ]
    reasons += [*_control(a.settings, b.settings), *_set_otherwise(a.settings, b.settings)]
    for name, side in (("A", a), ("B", b)):
        reasons += _misread(name, side) + _statuses(name, side)
    return reasons


def _control(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Name the side that had no prompts, or had them off: it is the other's control."""
    prompts = [side.get("prompts") for side in (a, b)]
    bare = [one is not None and (not one or "disabled" in one) for one in prompts]
    if None in prompts or bare[0] == bare[1]:
        return []
    name, own = ("A", prompts[0]) if bare[0] else ("B", prompts[1])
    if not own:
        return [f"{name} has no prompts: it is a control, or a bare host."]
    same = "the same" if a.get("model_sha256") == b.get("model_sha256") else "other"
    return [f"{name} was asked with its prompts off (--disable-vpp); the weights are {same}."]


def _set_otherwise(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say, part by part, which settings differ that decide what is answered."""
    reasons = []
    for part in PARTS:
        apart = [f"{name} ({_short(of_a)} and {_short(of_b)})" for name, of_a, of_b in _apart(part, a, b)]
        if apart:
            reasons.append(f"Settings of A and B differ: {', '.join(apart)}.")
    return reasons


def _apart(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs in a part; one that only one side has kept is a single difference."""
    if part == "prompts" and _control(a, b):
        return
    if part in a and part in b:
        yield from differences({part: a[part]}, {part: b[part]})
    elif part in a or part in b:
        of_a, of_b = ("known" if part in side else "not known" for side in (a, b))
        yield part, of_a, of_b


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."


def _accuracy(side: Evaluation, under: Protocol) -> float | None:
    """Return Acc@0.5 under another protocol, or None where that one reads another family's text."""
    if under.family and not write_alike(box_codec(under.family), side.codec):
        return None
    return fmean(one.correct for one in judge([one.answer for one in side.judged], under, side.codec))


def _misread(name: str, side: Evaluation) -> list[str]:
    readings = other_readings([one.answer for one in side.judged], side.protocol, side.codec)
    if not readings:
        return []
    best = max(readings, key=lambda reading: readings[reading])
    if readings[best] - side.accuracy < TELLING:
        return []
    return [
        f"{name}'s answers fit better when they are read as {best}: {_percent(readings[best])} instead of "
        f"{_percent(side.accuracy)}. The model was asked, trained or read in another frame."
    ]


def _statuses(name: str, side: Evaluation) -> list[str]:
    counts = Counter(one.parsed.status for one in side.judged)
    said = {
        BoxStatus.UNPARSABLE: "hold no box that the protocol reads",
        BoxStatus.NONE: "say that there is nothing",
        BoxStatus.INVERTED: "have their corners in the wrong order",
        BoxStatus.CLIPPED: "reach beyond the image",
    }
    return [
        f"{counts[status]} of {name}'s {len(side.judged)} answers {what}."
        for status, what in said.items()
        if counts[status] >= max(1, TELLING * len(side.judged))
    ]


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
