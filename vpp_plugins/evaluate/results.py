"""From raw answers to a result: every answer judged under a protocol, the figures that are reported, and their page."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vpp_plugins.boxes import Box, BoxCodec, BoxStatus, count_repeats
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.metrics import interval, iou_text, share_interval
from vpp_plugins.evaluate.protocol import Protocol, protocol
from vpp_plugins.evaluate.readers import UNPARSABLE, ParsedBox
from vpp_plugins.evaluate.rows import Row, image_id
from vpp_plugins.evaluate.run import read_evaluation
from vpp_plugins.images import load_image
from vpp_plugins.plugins import box_codec
from vpp_plugins.report import COLOURS, TRUTH, curve, image_url, write_page

THRESHOLDS = (0.5, 0.75, 0.9)
CURVE = tuple(step / 20 for step in range(1, 20))
"""Thresholds of the curve; not 0, which every answer reaches, also one without a box."""
FIGURES = {
    "acc_50": "Acc@0.5",
    "acc_75": "Acc@0.75",
    "acc_90": "Acc@0.9",
    "macc": "Acc@0.5:0.95",
    "mean_iou": "mean IoU",
    "f1": "mean F1",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
}
"""What readers call each figure that has an interval; those behind the mean IoU are of sets, where they are asked."""
HUNDRED = 100
"""Boxes from which on an answer is counted as a list of everything."""
MEANINGS = {
    "ok": "a box inside the image",
    "clipped": "a box that reaches beyond the image",
    "inverted": "a box with its corners in the wrong order",
    "unparsable": "no box that the protocol reads",
    "none": "the answer says that there is nothing",
    "unreadable": "the image could not be read, so nothing was asked",
}
"""What each status of an answer says, for a reader of the page."""
SHOWN = 12
"""Images on a page."""
_GROUPS = 40


@dataclass(frozen=True)
class Judged:
    """One answer, what a protocol read in it, and how far that overlaps what is true."""

    answer: Answer
    parsed: ParsedBox
    iou: float
    """Of several boxes the least of the best pairing (`Protocol.score`)."""
    correct: bool
    """At the threshold 0.5."""
    f1: float
    """Of the boxes that are the same at 0.5."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, read back from its folder."""

    folder: Path
    settings: Mapping[str, object]
    protocol: Protocol
    codec: BoxCodec
    judged: list[Judged]

    @property
    def accuracy(self) -> float:
        """Acc@0.5, 0 to 1."""
        return fmean(one.correct for one in self.judged)

    @property
    def title(self) -> str:
        """Model and data."""
        return title(self.settings)


def load_evaluation(folder: str | Path, protocol_name: str | None = None, box_format: str | None = None) -> Evaluation:
    """Read the answers of a finished evaluation and judge them under its own protocol, or under another.

    `box_format` reads them as another family's. Raises VPPError where the folder holds no finished evaluation, or where
    the protocol's file is not what it was when the evaluation ran.
    """
    settings, answers = read_evaluation(folder)
    chosen = protocol(protocol_name or str(settings["protocol"]))
    if chosen.task == "caption":
        raise VPPError(f"'{folder}' holds region captions ('{chosen.name}'): only evaluations of boxes are compared.")
    if protocol_name is None and chosen.sha256 != settings["protocol_sha256"]:
        raise VPPError(
            f"'{folder}' was evaluated under another version of the protocol '{chosen.name}': rescore it, with "
            f"`vpp eval rescore {folder} --protocol {chosen.name}`."
        )
    codec = box_codec(box_format or chosen.family or str(settings["box_format"]))
    judged = judge(answers, chosen, codec)
    return Evaluation(Path(folder), settings, chosen, codec, judged)


def judge(answers: Sequence[Answer], protocol: Protocol, codec: BoxCodec) -> list[Judged]:
    """Read every answer under a protocol; answers of unreadable images hold no box."""
    judged = []
    for answer in answers:
        parsed = UNPARSABLE if answer.error else protocol.read(answer.text, answer.meta, codec)
        iou, f1 = protocol.score(parsed, answer.boxes, answer.meta, codec)
        judged.append(Judged(answer, parsed, iou, protocol.is_correct(iou), f1))
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
    statuses = Counter("unreadable" if one.answer.error else str(one.parsed.status) for one in judged)
    return {
        "rows": len(judged),
        "pictures": len(set(images)),  # the key of 0.1.0: results.json is read by others
        **accuracies,
        **{name: EXTRA[name](judged, protocol, images) for name in protocol.extra},
        "mean_iou": asdict(interval([one.iou for one in judged], images)),
        **(_of_sets(judged, images) if protocol.task == "set" else {}),
        "statuses": {name: statuses.get(name, 0) for name in [*map(str, BoxStatus), "unreadable"]},
        "by_kind": _by(judged, lambda one: one.answer.kind),
        "by_category": _by(judged, lambda one: one.answer.category),
        "curve": [[threshold, fmean(_hits(judged, protocol, threshold))] for threshold in CURVE],
    }


def _of_sets(judged: Sequence[Judged], images: Sequence[str]) -> dict[str, Any]:
    """Return mean F1, the shares of answers that are right about whether anything is there, and what is odd in them.

    N-acc is of the rows where nothing is, and T-acc of all others; the one that has no row is left out.
    """
    figures: dict[str, Any] = {"f1": asdict(interval([one.f1 for one in judged], images))}
    for name, there in (("n_acc", False), ("t_acc", True)):
        rows = [(one, image) for one, image in zip(judged, images, strict=True) if bool(one.answer.boxes) is there]
        if rows:
            right = [float(bool(one.parsed.boxes) if there else one.correct) for one, _ in rows]
            figures[name] = asdict(share_interval(right, [image for _, image in rows]))
    return {
        **figures,
        "repeating": sum(count_repeats(one.parsed.boxes) > 0 for one in judged),
        "hundred_boxes": sum(len(one.parsed.boxes) >= HUNDRED for one in judged),
    }


def odd_sets(figures: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each way in which answers are no sets, or no answers."""
    said = {
        "repeating": "answers repeat a box: every repetition counts as a box too many.",
        "hundred_boxes": f"answers hold {HUNDRED} boxes or more: the model lists what it sees, or does not stop.",
    }
    return [f"{figures[key]} {what}" for key, what in said.items() if figures.get(key)]


def _hits(judged: Sequence[Judged], protocol: Protocol, threshold: float) -> list[float]:
    return [float(protocol.is_correct(one.iou, threshold)) for one in judged]


def _mean_accuracy(judged: Sequence[Judged], protocol: Protocol, images: Sequence[str]) -> dict[str, Any]:
    """Return the mean of the accuracies at IoU 0.5 to 0.95, in steps of 0.05, and its interval."""
    return asdict(interval(_reached(judged, protocol), images))


def _by_scale(judged: Sequence[Judged], protocol: Protocol, images: Sequence[str]) -> dict[str, Any]:
    """Return figures of small, medium and large objects: the root of the area below 128 pixels, to 256, above."""

    def scale(one: Judged) -> str:
        x1, y1, x2, y2 = one.answer.boxes[0]
        side = math.sqrt((x2 - x1) * (y2 - y1))
        return "small" if side < 128 else "medium" if side <= 256 else "large"

    return _by(judged, scale, protocol)


def _by_class(judged: Sequence[Judged], protocol: Protocol, images: Sequence[str]) -> dict[str, Any]:
    """Return the means over categories, each of which counts once."""
    groups = _by(judged, lambda one: one.answer.category, protocol).values()
    means = {key: fmean(group[key] for group in groups) for key in ("acc_50", "mean_iou", "macc") if groups}
    return {f"{len(groups)} categories": {"rows": len(judged), **means}} if groups else {}


EXTRA: Mapping[str, Callable[[Sequence[Judged], Protocol, Sequence[str]], dict[str, Any]]] = {
    "macc": _mean_accuracy,
    "by_scale": _by_scale,
    "by_class": _by_class,
}
"""Figures that a protocol may ask for beside the others."""


def _by(
    judged: Sequence[Judged], key: Callable[[Judged], str], protocol: Protocol | None = None
) -> dict[str, dict[str, float]]:
    """Return count and figures per named group, with a protocol the mean accuracy; rows without a name are left out."""
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        groups.setdefault(key(one), []).append(one)
    return {
        name: {
            "rows": len(group),
            "acc_50": fmean(float(one.correct) for one in group),
            "mean_iou": fmean(one.iou for one in group),
            **({} if protocol is None else {"macc": fmean(_reached(group, protocol))}),
        }
        for name, group in sorted(groups.items())
        if name
    }


def _reached(judged: Sequence[Judged], protocol: Protocol) -> list[float]:
    """Return for each answer the share of the thresholds 0.5 to 0.95, in steps of 0.05, that it reaches."""
    return [fmean(hits) for hits in zip(*(_hits(judged, protocol, step / 20) for step in range(10, 20)), strict=True)]


def write_report(evaluation: Evaluation, path: str | Path, rows: Sequence[Row] | None = None) -> Path:
    """Write the page of one evaluation: figures, curve, worst answers as images, protocol, versions and hashes.

    `rows` bring the images where the answers do not name their files.
    """
    figures = summarise(evaluation.judged, evaluation.protocol)
    worst = sorted(evaluation.judged, key=lambda one: (one.iou, one.answer.id))[:SHOWN]
    images = {row.id: row for row in rows or ()}
    return write_page(
        path,
        "evaluation",
        title=evaluation.title,
        protocol=evaluation.protocol.name,
        figures=figures,
        groups=[
            _group(title, figures[key])
            for title, key in (
                ("By kind of expression", "by_kind"),
                ("By scale", "by_scale"),
                ("Mean over categories", "by_class"),
                ("By category", "by_category"),
            )
            if key in figures
        ],
        worst=[answer_card(images, one) for one in worst],
        facts=facts(evaluation.settings, evaluation.protocol),
        **figures_tables({"": figures}),
    )


def figures_tables(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return accuracies, statuses and curve of one or more evaluations by name, as the pages show them."""
    sides = list(figures.values())
    ticks = [share / 5 for share in range(6)]
    return {
        "accuracies": [
            [label, *((f"{100 * side[key]['mean']:.1f}", interval_text(side[key])) for side in sides)]
            for key, label in FIGURES.items()
            if all(key in side for side in sides)
        ],
        "statuses": [[name, *(side["statuses"][name] for side in sides), what] for name, what in MEANINGS.items()],
        "curve": curve(
            {name: [(iou, 100 * share) for iou, share in side["curve"]] for name, side in figures.items()},
            x="IoU asked for",
            y="Accuracy, %",
            x_ticks=ticks,
            y_ticks=[100 * tick for tick in ticks],
        ),
    }


def interval_text(figure: Mapping[str, Any]) -> str:
    """Return a figure's interval in percent, and how it was found where that is not the bootstrap."""
    named = "" if figure["method"] == "bootstrap" else f" ({figure['method']})"
    return f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}{named}"


def _group(title: str, groups: Mapping[str, Mapping[str, float]]) -> tuple[str, list[list[Any]], int]:
    """Return the largest groups of rows with their figures, and how many are left out."""
    largest = sorted(groups.items(), key=lambda item: (-item[1]["rows"], item[0]))[:_GROUPS]
    shown = [
        [name, group["rows"], f"{100 * group['acc_50']:.1f}", f"{100 * group['mean_iou']:.1f}"]
        for name, group in largest
    ]
    return title, shown, len(groups) - len(shown)


def answer_card(images: Mapping[str, Row], *answers: Judged) -> dict[str, Any]:
    """Return one or two evaluations' answers to the same row on its image; `images` are rows by id."""
    answer = answers[0].answer
    found = [(box, colour) for one, colour in zip(answers, COLOURS, strict=False) for box in one.parsed.boxes]
    return {
        "image": image_of(images, answer, found),
        "caption": answer.expression,
        "lines": [f"{one.answer.text[:200] or one.answer.error} (IoU {iou_text(one.iou)})" for one in answers],
    }


def image_of(images: Mapping[str, Row], answer: Answer, boxes: Sequence[tuple[Box, str]] = ()) -> str | None:
    """Return an answer's image with what is true, and boxes with their colours, on it; None where it is not at hand."""
    row = images.get(answer.id)
    try:
        image = row.load_image() if row is not None else load_image(Path(answer.image))
    except VPPError:
        return None
    shown = [*((box, TRUTH) for box in answer.boxes), *boxes]
    return image_url(image, [box for box, _ in shown], [colour for _, colour in shown])


def title(settings: Mapping[str, Any]) -> str:
    """Name an evaluation by its model and data."""
    return f"{settings.get('model', 'A model')} on {settings.get('data', 'its data')}"


def facts(settings: Mapping[str, Any], rules: Protocol) -> list[tuple[str, str]]:
    """Return what an evaluation says of itself, for its page; what is empty is left out."""
    return [
        (key.replace("_", " "), _fact(value))
        for key, value in {**settings, "rules": rules.source}.items()
        if value not in (None, {})
    ]


def _fact(value: Any) -> str:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)
