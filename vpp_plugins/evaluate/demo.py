"""The demo: ground photographs and scenes with the pocket model, and with its twin that was trained without VPP."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vpp_plugins.attach import active_vpp
from vpp_plugins.boxes import Box, box_iou
from vpp_plugins.data.scenes import Assets, SceneGenerator, Shapes, fetch_assets, load_real_photos
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.attention import Attention, attend
from vpp_plugins.evaluate.controls import shuffled
from vpp_plugins.evaluate.metrics import Interval, Scores, iou_text, paired, score, share_interval
from vpp_plugins.evaluate.rows import Row, image_id, rows_of_scenes
from vpp_plugins.ground import Grounder, Grounding
from vpp_plugins.prompts import draw_overlay, draw_prompt
from vpp_plugins.report import COLOURS, TRUTH, image_url, write_page

PHOTOS, SCENES = 12, 12
SCENE_SIZE, SCENE_SEED = 448, 2026
AXES_SIDE = 640
"""Side of the axes on the page, in pixels: their ticks are to be read."""
Tell = Callable[[str], None]
Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Passes items on, and shows how many of them are through; the text says what they are."""
Show = Callable[[Row, Mapping[str, "TimedGrounding"]], None]


@dataclass(frozen=True)
class TimedGrounding:
    """What one model found for a row; `seconds` is its share of its batch's wall time."""

    grounding: Grounding
    iou: float
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo shows."""

    rows: list[Row]
    shown: list[int]
    """Index of the one row per image that the lines and the page show."""
    answers: dict[str, list[TimedGrounding]]
    """By model: "VPP" and "without VPP"."""
    scores: dict[str, Scores]
    controls: dict[str, Scores]
    """The same images and boxes with the expressions shuffled."""
    gaps: dict[str, Interval]
    """By each other model: the share of boxes that the first one hits, IoU at least 0.5, minus the other's."""
    reading: dict[str, Interval]
    """By set: the share that the first model hits, minus that which it hits of the control."""


def _untracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    return items


def choose_rows(assets: Assets | None, track: Track = _untracked) -> tuple[list[Row], list[int]]:
    """Return every expression of 12 photographs and 12 test scenes, and which one of each image is shown.

    A fixed rule chooses, not the result: every second photograph in the order of refs.json, the first scenes of the
    test split, the first expression of each image. Without assets the scenes are of shapes drawn in code.
    """
    source = Shapes() if assets is None else assets
    generator = SceneGenerator(source, split="test", seed=SCENE_SEED, size=SCENE_SIZE)
    scenes = (generator.scene(index) for index in track(range(SCENES), "Composing scenes"))
    images = [*load_real_photos()[::2][:PHOTOS], *scenes]
    rows = rows_of_scenes(images)
    keys = [_key(row) for row in rows]
    return rows, [keys.index(image.key) for image in images]


def _key(row: Row) -> str:
    return image_id(row.file, row.id)


def run_demo(
    grounders: dict[str, Grounder], assets: Assets | None, track: Track = _untracked, show: Show = lambda *_: None
) -> DemoResult:
    """Ask every model about every row, then the shuffled control; `show` gets one row per image, as it comes."""
    rows, shown = choose_rows(assets, track)
    expressions = [row.expression for row in rows]
    control = shuffled(expressions, [_key(row) for row in rows], seed=0)

    def show_answers(index: int, answers: Mapping[str, TimedGrounding]) -> None:
        if index in shown:
            show(rows[index], answers)

    what = f"Grounding {len(rows)} expressions in {len(shown)} images"
    answers = _ask_all(grounders, rows, expressions, track, what, show_answers)
    controls = _ask_all(grounders, rows, control, track, "The control: the same with shuffled expressions")
    scores, control_scores = (
        {name: _scores(given, rows) for name, given in found.items()} for found in (answers, controls)
    )
    images = [_key(row) for row in rows]
    first, *others = answers
    hits = _hits(answers[first])
    gaps = {name: paired(_hits(answers[name]), hits, images).difference for name in others}
    guessed = _hits(controls[first])
    reading = {
        name: paired([guessed[i] for i in among], [hits[i] for i in among], [images[i] for i in among]).difference
        for name, among in _sets(rows).items()
    }
    return DemoResult(rows, shown, answers, scores, control_scores, gaps, reading)


def _sets(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Return the indices of the rows of each set, photographs first."""
    sets: dict[str, list[int]] = {"photographs": [], "scenes": []}
    for index, row in enumerate(rows):
        sets["photographs" if row.kind == "photo" else "scenes"].append(index)
    return sets


def _hits(answers: Sequence[TimedGrounding]) -> list[float]:
    return [float(answer.iou >= 0.5) for answer in answers]


def assets_or_none(folder: Path, tell: Tell) -> Assets | None:
    """Return the scene images, fetched if they are not there; say why, and return None, where they cannot be had."""
    try:
        return fetch_assets(folder, progress=tell)
    except VPPError as error:
        tell(f"{error} The demo goes on with these.")
        return None


def answer_heading(models: Sequence[str]) -> str:
    """Return what stands above the lines of `answer_line`."""
    return f"{'image':27} {f'box of {models[0]}':>15} {'IoUs':{5 * len(models) - 1}} {'time':>7}  expression"


def answer_line(row: Row, answers: Mapping[str, TimedGrounding]) -> str:
    """Return a line, in rich's markup, of an image, the first model's box, every model's IoU, and the expression."""
    from rich.markup import escape

    first, *_ = answers.values()
    asked = f"{_key(row):27} {box_text(first.grounding):>15}"
    ious = " ".join(_coloured(answer.iou) for answer in answers.values())
    return f"{escape(asked)} {ious} {1000 * first.seconds:4.0f} ms  {escape(row.expression)}"


def _coloured(iou: float) -> str:
    return f"[{'green' if iou >= 0.5 else 'red'}]{iou_text(iou)}[/]"


def demo_summary(result: DemoResult) -> list[str]:
    """Return a line per model: accuracy, its shuffled control, and mean IoU, over all expressions of the images."""
    return [
        f"{name}: Acc@0.5 = {scores.acc_50:.3f} over {scores.count} expressions, mean IoU = {scores.mean_iou:.3f}; "
        f"with shuffled expressions Acc@0.5 = {result.controls[name].acc_50:.3f}"
        for name, scores in result.scores.items()
    ]


def demo_sentences(result: DemoResult) -> list[str]:
    """Return what the first model's hits mean, beside each other model's and beside its own shuffled control's."""
    name = next(iter(result.answers))
    hit = {model: _hits(given) for model, given in result.answers.items()}
    hits = {model: round(sum(own)) for model, own in hit.items()}
    said = [
        f"{name} hits {hits[name]} of {len(result.rows)} boxes (IoU at least 0.5), {other} {hits[other]}: "
        f"{_points(gap)}. {_meaning(gap, name)} Each was trained once, and another training may come out otherwise."
        for other, gap in result.gaps.items()
    ]
    of_shown = ", ".join(f"{model} {sum(own[index] for index in result.shown):.0f}" for model, own in hit.items())
    control = round(result.controls[name].acc_50 * len(result.rows))
    said += [
        f"That is {len(result.rows)} expressions in {len(result.shown)} images. One of each image is shown, and of "
        f"these {len(result.shown)} are hit by: {of_shown}.",
        f"With shuffled expressions, each image asked for what is in another, {name} hits {control} boxes.",
    ]
    for images, gap in result.reading.items():
        of_all = _of_all_photographs(result) if images == "photographs" else ""
        reads = "It reads" if gap.low > 0 else "0 lies within: these do not show that it reads"
        said.append(f"On {images}{of_all} what it is asked for is worth {_points(gap)}. {reads} what it is asked for.")
    return said


def _of_all_photographs(result: DemoResult) -> str:
    asked, there = len(_sets(result.rows)["photographs"]), len(rows_of_scenes(load_real_photos()))
    return f" ({asked} of their {there} expressions; all of them: README)"


def _points(gap: Interval) -> str:
    mean, low, high = (100 * value for value in (gap.mean, gap.low, gap.high))
    return f"{mean:+.1f} points (95 % interval over the images: {low:+.1f} to {high:+.1f})"


def _meaning(gap: Interval, name: str) -> str:
    if gap.low <= 0 <= gap.high:
        return "0 lies within: these images do not tell the two apart."
    return f"So on these images {name} is {'better' if gap.low > 0 else 'worse: the prompts do not help'}."


def box_text(grounding: Grounding) -> str:
    """Return the first box in whole pixels, or the status where there is none."""
    return " ".join(f"{value:.0f}" for value in grounding.boxes[0]) if grounding.boxes else str(grounding.status)


def write_demo_page(result: DemoResult, grounder: Grounder, folder: Path, track: Track = _untracked) -> Path:
    """Write `index.html`: the scores and what they mean, every shown image with the truth and the answers, the axes.

    Beside each image stands what the first model, which `grounder` asks, attends to: see `Attention`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photographs = _sets(result.rows)["photographs"]
    cards: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for index in track(result.shown, "Drawing what is attended to"):
        cards[index in photographs].append(_card(result, index, grounder))
    return write_page(
        folder / "index.html",
        "demo",
        title="vpp-plugins: the pocket model grounds images",
        models=list(result.answers),
        sentences=demo_sentences(result),
        scores=zip(MEASURES, *(_measured(result, name) for name in result.answers), strict=True),
        sections=[("Photographs", cards[True]), ("Composed scenes", cards[False])],
        axes=_axes(grounder, result.rows[0].load_image()),
    )


MEASURES = (
    "Acc@0.5",
    "on photographs",
    "on scenes",
    "with shuffled expressions",
    "mean IoU",
    "answers without a box",
    "expressions",
)


def _measured(result: DemoResult, name: str) -> list[Any]:
    """Return a model's MEASURES: Acc@0.5 of all, photographs and scenes, and all else of all."""
    scores, hits = result.scores[name], _hits(result.answers[name])
    accuracies = []
    for rows in (range(len(result.rows)), *_sets(result.rows).values()):
        share = share_interval([hits[index] for index in rows], [_key(result.rows[index]) for index in rows])
        accuracies.append((f"{share.mean:.3f}", f"{share.low:.2f} to {share.high:.2f}"))
    control = f"{result.controls[name].acc_50:.3f}"
    return [*accuracies, control, f"{scores.mean_iou:.3f}", scores.without_box, scores.count]


@dataclass(frozen=True)
class DrawnAxes:
    """The global prompt's axes alone and laid over an image six times as strong, `AXES_SIDE` pixels large."""

    alone: Image.Image
    laid: Image.Image
    weight: float
    """The share of the axes where they lie, 0 to 1."""


def draw_axes(grounder: Grounder, image: Image.Image) -> DrawnAxes | None:
    """Return the axes large enough to read their ticks; None for a model without them."""
    axes = active_vpp(grounder.model).global_vpp
    if axes is None:
        return None
    alone = draw_prompt(axes).resize((AXES_SIDE, AXES_SIDE), Image.Resampling.LANCZOS)
    return DrawnAxes(alone, draw_overlay(axes, image, gain=6, side=AXES_SIDE), 1 - axes.alpha)


def _axes(grounder: Grounder, image: Image.Image) -> dict[str, str] | None:
    axes = draw_axes(grounder, image)
    if axes is None:
        return None
    drawn = {"alone": axes.alone, "laid": axes.laid}
    urls = {name: image_url(one, side=AXES_SIDE) for name, one in drawn.items()}
    return {**urls, "weight": f"{axes.weight:.2f}"}


def _card(result: DemoResult, index: int, grounder: Grounder) -> dict[str, Any]:
    row, image = result.rows[index], result.rows[index].load_image()
    answers = {name: given[index] for name, given in result.answers.items()}
    found = [
        (one.grounding.boxes[0], colour)
        for one, colour in zip(answers.values(), COLOURS, strict=False)
        if one.grounding.boxes
    ]
    inside = draw_inside(attend(grounder, image, row.expression), next(iter(answers.values())).grounding.boxes)
    return {
        "image": image_url(image, *zip((row.box, TRUTH), *found, strict=True)),
        "expression": row.expression,
        "answers": [
            {"model": name, "text": one.grounding.text, "iou": iou_text(one.iou), "hit": one.iou >= 0.5}
            for name, one in answers.items()
        ],
        "inside": [(image_url(drawn), what) for drawn, what in inside],
    }


def draw_inside(seen: Attention, answer: Sequence[Box]) -> list[tuple[Image.Image, str]]:
    """Return images of what was attended to, and what they show; `answer` has xyxy boxes in pixels, or none."""
    nearest = seen.nearest(answer[0]) if answer else None
    shares = f"{seen.on_image.sum():.0%} on the image, at most {max(seen.on_image.tolist(), default=0):.1%} on a token"
    if len(seen.on_queries):
        shares = f"{seen.on_queries.sum():.0%} on queries, {shares}"
    inside = [(seen.draw(nearest), f"Attention as the numbers are written: {shares}.")]
    if seen.boxes_xyxy_px:
        chosen = "none meets the answer" if nearest is None else "the thick one is nearest to the answer"
        inside.insert(0, (seen.draw_queries(nearest), f"Where the queries look; {chosen}."))
    return inside


def _ask_all(
    grounders: Mapping[str, Grounder],
    rows: Sequence[Row],
    expressions: Sequence[str],
    track: Track,
    what: str,
    show: Callable[[int, Mapping[str, TimedGrounding]], None] = lambda *_: None,
) -> dict[str, list[TimedGrounding]]:
    """Ask the models batch by batch in turn, so that what they say to a row stands together when it is shown."""
    size = min(grounder.batch_size for grounder in grounders.values())
    found: dict[str, list[TimedGrounding]] = {name: [] for name in grounders}
    for start in track(range(0, len(rows), size), what):
        batch = slice(start, start + size)
        for name, grounder in grounders.items():
            found[name] += _ask(grounder, rows[batch], expressions[batch])
        for index in range(start, min(start + size, len(rows))):
            show(index, {name: given[index] for name, given in found.items()})
    return found


def _ask(grounder: Grounder, rows: Sequence[Row], expressions: Sequence[str]) -> list[TimedGrounding]:
    """Ask one batch."""
    began = time.perf_counter()
    groundings = grounder([row.load_image() for row in rows], expressions)
    seconds = (time.perf_counter() - began) / len(rows)
    ious = [
        box_iou(found.boxes[0], row.box) if found.boxes else 0.0 for found, row in zip(groundings, rows, strict=True)
    ]
    return [TimedGrounding(found, iou, seconds) for found, iou in zip(groundings, ious, strict=True)]


def _scores(answers: Sequence[TimedGrounding], rows: Sequence[Row]) -> Scores:
    boxes = [answer.grounding.boxes[0] if answer.grounding.boxes else None for answer in answers]
    return score(boxes, [row.box for row in rows])
