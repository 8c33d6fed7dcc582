"""The demo: ground photographs and scenes with the pocket model, and with its twin that was trained without VPP."""

import time
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Question:
    """One expression of one image, with its true box (xyxy pixels)."""

    scene: Scene
    expression: str
    truth: Box


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


def choose_questions(assets: Assets | None) -> tuple[list[Question], list[int]]:
    """Return every expression of 12 photographs and 12 test scenes, and which one of each image is shown.

    A fixed rule chooses, not the result: every second photograph in the order of refs.json, the first scenes of the
    test split, the first expression of each image. Without assets the scenes are of shapes drawn in code.
    """
    source = Shapes() if assets is None else assets
    generator = SceneGenerator(source, split="test", seed=SCENE_SEED, size=SCENE_SIZE)
    images = [*load_real_photos()[::2][:PHOTOS], *(generator.scene(index) for index in range(SCENES))]
    questions = [Question(p, e.text, e.box_xyxy) for p in images for e in p.expressions]
    keys = [question.scene.key for question in questions]
    return questions, [keys.index(image.key) for image in images]


def run_demo(grounders: dict[str, Grounder], assets: Assets | None, tell: Tell = lambda sentence: None) -> DemoResult:
    """Ask every model every question, then the shuffled control."""
    questions, shown = choose_questions(assets)
    keys = [question.scene.key for question in questions]
    control = shuffled([question.expression for question in questions], keys, seed=0)
    answers: dict[str, list[Answer]] = {}
    controls: dict[str, Scores] = {}
    for name, grounder in grounders.items():
        tell(f"Grounding {len(questions)} expressions in {len(shown)} images: {name}")
        answers[name] = _ask(grounder, questions, [question.expression for question in questions])
        controls[name] = _scores(_ask(grounder, questions, control), questions)
    scores = {name: _scores(given, questions) for name, given in answers.items()}
    return DemoResult(questions, shown, answers, scores, controls)


def assets_or_none(folder: Path, tell: Tell) -> Assets | None:
    """Return the scene images, fetched if they are not there; say why, and return None, where they cannot be had."""
    try:
        return fetch_assets(folder, progress=tell)
    except VPPError as error:
        tell(f"{error} The demo goes on with these.")
        return None


def show_table(result: DemoResult, console: Any) -> None:
    """Print one row per image, then Acc@0.5 over all expressions with the control beside it."""
    from rich.markup import escape
    from rich.table import Table

    first, *others = result.answers
    table = Table(title=f"One expression of every image: the box of {escape(first)}")
    table.add_column("image", overflow="fold")
    table.add_column("expression", overflow="fold", min_width=14)
    table.add_column("box, xyxy", justify="right", no_wrap=True)
    for name in result.answers:
        table.add_column("IoU" if name == first else f"IoU, {name}", justify="right", max_width=7)
    table.add_column("ms", justify="right")
    for index in result.shown:
        question, answer = result.questions[index], result.answers[first][index]
        ious = [_coloured(result.answers[name][index].iou) for name in (first, *others)]
        words = (escape(question.scene.key), escape(question.expression), box_text(answer.grounding))
        table.add_row(*words, *ious, f"{1000 * answer.seconds:.0f}")
    console.print(table)
    for line in summary(result):
        console.print(line)


def _coloured(iou: float) -> str:
    return f"[{'green' if iou >= 0.5 else 'red'}]{iou:.2f}[/]"


def summary(result: DemoResult) -> list[str]:
    """Return a line per model: accuracy, its shuffled control, and mean IoU, over all expressions of the images."""
    return [
        f"{name}: Acc@0.5 = {scores.acc_50:.3f} over {scores.count} expressions, shuffled-expression control = "
        f"{result.controls[name].acc_50:.3f}, mean IoU = {scores.mean_iou:.3f}"
        for name, scores in result.scores.items()
    ]


def box_text(grounding: Grounding) -> str:
    """Return the first box in whole pixels, or the status where there is none."""
    return " ".join(f"{value:.0f}" for value in grounding.boxes[0]) if grounding.boxes else str(grounding.status)


def _ask(grounder: Grounder, questions: Sequence[Question], expressions: Sequence[str]) -> list[Answer]:
    answers: list[Answer] = []
    for start in range(0, len(questions), grounder.batch_size):
        batch = questions[start : start + grounder.batch_size]
        began = time.perf_counter()
        groundings = grounder([q.scene.image for q in batch], expressions[start : start + grounder.batch_size])
        seconds = (time.perf_counter() - began) / len(batch)
        for question, grounding in zip(batch, groundings, strict=True):
            iou = box_iou(grounding.boxes[0], question.truth) if grounding.boxes else 0.0
            answers.append(Answer(grounding, iou, seconds))
    return answers


def _scores(answers: Sequence[Answer], questions: Sequence[Question]) -> Scores:
    boxes = [answer.grounding.boxes[0] if answer.grounding.boxes else None for answer in answers]
    return score(boxes, [question.truth for question in questions])
