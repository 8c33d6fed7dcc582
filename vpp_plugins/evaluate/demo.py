"""The demo: ground photographs and scenes with the pocket model, and with its twin that was trained without VPP."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vpp_plugins.boxes import box_iou
from vpp_plugins.data.scenes import Assets, SceneGenerator, Shapes, fetch_assets, load_real_photos
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.controls import shuffled
from vpp_plugins.evaluate.metrics import Scores, score
from vpp_plugins.evaluate.rows import Row, image_id, rows_of_scenes
from vpp_plugins.ground import Grounder, Grounding
from vpp_plugins.prompts import VPP, draw_overlay, draw_prompt, draw_queries, draw_sensitivity
from vpp_plugins.prompts.generators import DetectionHeads
from vpp_plugins.report import COLOURS, TRUTH, image_url, write_page

PHOTOS, SCENES = 12, 12
SCENE_SIZE, SCENE_SEED = 448, 2026
Tell = Callable[[str], None]
Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Passes items on, and shows how many of them are through; the text says what they are."""
Show = Callable[[Row, Mapping[str, "TimedGrounding"]], None]
Detector = tuple[DetectionHeads, list[str]]
"""A detector's heads and the names of its classes."""


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
    return DemoResult(rows, shown, answers, scores, control_scores)


def assets_or_none(folder: Path, tell: Tell) -> Assets | None:
    """Return the scene images, fetched if they are not there; say why, and return None, where they cannot be had."""
    try:
        return fetch_assets(folder, progress=tell)
    except VPPError as error:
        tell(f"{error} The demo goes on with these.")
        return None


def answer_line(row: Row, answers: Mapping[str, TimedGrounding]) -> str:
    """Return a line, in rich's markup, of an image, an expression, the first model's box, and every model's IoU."""
    from rich.markup import escape

    first, *_ = answers.values()
    words = f"{_key(row):23} {row.expression:22} {box_text(first.grounding):>15}"
    ious = " ".join(_coloured(answer.iou) for answer in answers.values())
    return f"{escape(words)} {ious} {1000 * first.seconds:4.0f} ms"


def _coloured(iou: float) -> str:
    return f"[{'green' if iou >= 0.5 else 'red'}]{iou:.2f}[/]"


def demo_summary(result: DemoResult) -> list[str]:
    """Return a line per model: accuracy, its shuffled control, and mean IoU, over all expressions of the images."""
    return [
        f"{name}: Acc@0.5 = {scores.acc_50:.3f} over {scores.count} expressions, shuffled-expression control = "
        f"{result.controls[name].acc_50:.3f}, mean IoU = {scores.mean_iou:.3f}"
        for name, scores in result.scores.items()
    ]


def box_text(grounding: Grounding) -> str:
    """Return the first box in whole pixels, or the status where there is none."""
    return " ".join(f"{value:.0f}" for value in grounding.boxes[0]) if grounding.boxes else str(grounding.status)


def write_demo_page(result: DemoResult, vpp: VPP, folder: Path, detector: Detector | None = None) -> Path:
    """Write `index.html`: scores, the learned axes, and every shown image with the truth and the answers on it.

    Beside each image stand the axes as the vision encoder sees them on it, and the boxes of the local queries;
    without the heads of their `detector`, what the local tokens depend on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = vpp.global_vpp
    return write_page(
        folder / "index.html",
        "demo",
        title="vpp-plugins: the pocket model grounds images",
        models=list(result.answers),
        scores=[
            [name, *map("{:.3f}".format, shares), one.without_box, one.count]
            for name, one in result.scores.items()
            for shares in [(one.acc_50, result.controls[name].acc_50, one.mean_iou)]
        ],
        axes=axes and {"image": image_url(draw_prompt(axes)), "weight": f"{1 - axes.alpha:.2f}"},
        cards=[_card(result, index, vpp, detector) for index in result.shown],
    )


def _card(result: DemoResult, index: int, vpp: VPP, detector: Detector | None) -> dict[str, Any]:
    row, image = result.rows[index], result.rows[index].load_image()
    answers = {name: given[index] for name, given in result.answers.items()}
    found = [
        (one.grounding.boxes[0], colour)
        for one, colour in zip(answers.values(), COLOURS, strict=False)
        if one.grounding.boxes
    ]
    return {
        "image": image_url(image, *zip((row.box, TRUTH), *found, strict=True)),
        "expression": row.expression,
        "answers": [{"model": name, "text": one.grounding.text, "iou": one.iou} for name, one in answers.items()],
        "inside": [(image_url(seen), what) for seen, what in _inside(image, vpp, detector)],
    }


def _inside(image: Image.Image, vpp: VPP, detector: Detector | None) -> Iterator[tuple[Image.Image, str]]:
    if vpp.global_vpp is not None:
        yield draw_overlay(vpp.global_vpp, image, gain=6), "the axes on it, 6 times as strong"
    if vpp.local_vpp is not None and detector is not None:
        yield draw_queries(vpp, *detector, image), "what the local queries see"
    elif vpp.local_vpp is not None:
        yield draw_sensitivity(vpp, image), "bright: what the tokens depend on"


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
