"""The demo: ground photographs and scenes with the pocket model, and with its twin that was trained without VPP."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpp_plugins.boxes import Box, box_iou
from vpp_plugins.data.scenes import Assets, Scene, SceneGenerator, Shapes, fetch_assets, load_real_photos
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.controls import shuffled
from vpp_plugins.evaluate.metrics import Scores, score
from vpp_plugins.ground import Grounder, Grounding

PHOTOS, SCENES = 12, 12
SCENE_SIZE, SCENE_SEED = 448, 2026
Tell = Callable[[str], None]
Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Passes items on, and shows how many of them are through; the text says what they are."""
Show = Callable[["Question", Mapping[str, "Answer"]], None]


@dataclass(frozen=True)
class Answer:
    """What one model said to a question; `seconds` is its share of its batch's wall time."""

    grounding: Grounding
    iou: float
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo shows."""

    questions: list[Question]
    shown: list[int]
    """Index of the one question per image that the table and the page show."""
    answers: dict[str, list[Answer]]
    """By model: "VPP" and "without VPP"."""
    scores: dict[str, Scores]
    controls: dict[str, Scores]
    """The same images and boxes with the expressions shuffled."""


def _untracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    return items


def choose_questions(assets: Assets | None, track: Track = _untracked) -> tuple[list[Question], list[int]]:
    """Return every expression of 12 photographs and 12 test scenes, and which one of each image is shown.

    A fixed rule chooses, not the result: every second photograph in the order of refs.json, the first scenes of the
    test split, the first expression of each image. Without assets the scenes are of shapes drawn in code.
    """
    source = Shapes() if assets is None else assets
    generator = SceneGenerator(source, split="test", seed=SCENE_SEED, size=SCENE_SIZE)
    scenes = (generator.scene(index) for index in track(range(SCENES), "Composing scenes"))
    images = [*load_real_photos()[::2][:PHOTOS], *scenes]
    questions = [Question(p, e.text, e.box_xyxy) for p in images for e in p.expressions]
    keys = [question.scene.key for question in questions]
    return questions, [keys.index(image.key) for image in images]


def run_demo(
    grounders: dict[str, Grounder], assets: Assets | None, track: Track = _untracked, show: Show = lambda *_: None
) -> DemoResult:
    """Ask every model every question, then the shuffled control; `show` gets one question per image, as it comes."""
    questions, shown = choose_questions(assets, track)
    expressions = [question.expression for question in questions]
    control = shuffled(expressions, [question.scene.key for question in questions], seed=0)

    def show_answers(index: int, answers: Mapping[str, Answer]) -> None:
        if index in shown:
            show(questions[index], answers)

    what = f"Grounding {len(questions)} expressions in {len(shown)} images"
    answers = _ask_all(grounders, questions, expressions, track, what, show_answers)
    controls = _ask_all(grounders, questions, control, track, "The control: the same with shuffled expressions")
    scores, control_scores = (
        {name: _scores(given, questions) for name, given in found.items()} for found in (answers, controls)
    )
    return DemoResult(questions, shown, answers, scores, control_scores)


def assets_or_none(folder: Path, tell: Tell) -> Assets | None:
    """Return the scene images, fetched if they are not there; say why, and return None, where they cannot be had."""
    try:
        return fetch_assets(folder, progress=tell)
    except VPPError as error:
        tell(f"{error} The demo goes on with these.")
        return None


def answer_line(question: Question, answers: Mapping[str, Answer]) -> str:
    """Return a line, in rich's markup, of an image, an expression, the first model's box, and every model's IoU."""
    from rich.markup import escape

    first, *_ = answers.values()
    words = f"{question.scene.key:24} {question.expression:30} {box_text(first.grounding):>15}"
    ious = "  ".join(f"{name} {_coloured(answer.iou)}" for name, answer in answers.items())
    return f"{escape(words)}  IoU: {ious}  {1000 * first.seconds:.0f} ms"


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


def _ask_all(
    grounders: Mapping[str, Grounder],
    questions: Sequence[Question],
    expressions: Sequence[str],
    track: Track,
    what: str,
    show: Callable[[int, Mapping[str, Answer]], None] = lambda *_: None,
) -> dict[str, list[Answer]]:
    """Ask the models batch by batch in turn, so that what they say to a question stands together when it is shown."""
    size = min(grounder.batch_size for grounder in grounders.values())
    found: dict[str, list[Answer]] = {name: [] for name in grounders}
    for start in track(range(0, len(questions), size), what):
        batch = slice(start, start + size)
        for name, grounder in grounders.items():
            found[name] += _ask(grounder, questions[batch], expressions[batch])
        for index in range(start, min(start + size, len(questions))):
            show(index, {name: given[index] for name, given in found.items()})
    return found


def _ask(grounder: Grounder, questions: Sequence[Question], expressions: Sequence[str]) -> list[Answer]:
    """Ask one batch."""
    began = time.perf_counter()
    groundings = grounder([question.scene.image for question in questions], expressions)
    seconds = (time.perf_counter() - began) / len(questions)
    ious = [
        box_iou(found.boxes[0], question.truth) if found.boxes else 0.0
        for found, question in zip(groundings, questions, strict=True)
    ]
    return [Answer(found, iou, seconds) for found, iou in zip(groundings, ious, strict=True)]


def _scores(answers: Sequence[Answer], questions: Sequence[Question]) -> Scores:
    boxes = [answer.grounding.boxes[0] if answer.grounding.boxes else None for answer in answers]
    return score(boxes, [question.truth for question in questions])
