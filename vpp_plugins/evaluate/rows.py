"""The rows of an evaluation, each a sentence, its image and its true boxes; and which of them are asked together."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from vpp_plugins.boxes import Box, box_fault, count_repeats, shown_box
from vpp_plugins.data import Describe, Issue, Locate, Numbers, Sample, Tally, image_path
from vpp_plugins.data.scenes import Scene, SceneFolder, boxes_of
from vpp_plugins.errors import VPPError, few
from vpp_plugins.images import load_image

Task: TypeAlias = Literal["box", "set", "caption"]
"""Whether one box is asked for, any number of boxes down to none, or words for a given box."""
_HOW_MANY = ("none", "one", "several")
LOOK_AHEAD = 64
"""How many images with too many questions are passed by to fill a batch: those near one another are alike."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question and what is true. `boxes` are xyxy in pixels of the image, `size_hw` its height and width."""

    id: str
    image: Path | Image.Image
    size_hw: tuple[int, int]
    expression: str
    boxes: tuple[Box, ...]
    """All that the expression describes; empty where nothing is there."""
    category: str = ""
    """What the true object is, where the data say."""
    kind: str = ""
    """How the expression picks it out, where the data say."""

    @property
    def box(self) -> Box:
        """The only true box; raises VPPError where there are several or none."""
        if len(self.boxes) != 1:
            raise VPPError(f"row '{self.id}' has {len(self.boxes)} true boxes, where one is asked for.")
        return self.boxes[0]

    @property
    def file(self) -> str:
        """The image's file, or empty where it has none."""
        return str(self.image) if isinstance(self.image, Path) else ""

    def load_image(self) -> Image.Image:
        """Return the image, upright RGB; raises VPPError where it cannot be read or has another size."""
        image = load_image(self.image)
        if (image.height, image.width) != self.size_hw:
            raise VPPError(
                f"the image of row '{self.id}' is {image.width} x {image.height}, but its data say "
                f"{self.size_hw[1]} x {self.size_hw[0]}: the box would be of another image."
            )
        return image


def rows_of_scenes(scenes: Iterable[Scene], tally: Tally | None = None, *, task: Task = "box") -> list[Row]:
    """Return a row for every expression of scenes or photographs that the task can ask (see `rows_of_samples`)."""
    rows = (
        Row(
            id=f"{scene.key}/{number}",
            image=scene.image,
            size_hw=(scene.height, scene.width),
            expression=expression.text,
            boxes=tuple(map(_box, expression.boxes_xyxy)),
            category="" if expression.object is None else scene.objects[expression.object].name,
            kind=expression.kind,
        )
        for scene in scenes
        for number, expression in enumerate(scene.expressions)
    )
    return _asked(rows, task, tally)


def rows_of_folder(folder: SceneFolder, tally: Tally | None = None, *, task: Task = "box") -> list[Row]:
    """Return the rows of written scenes, as `rows_of_scenes` does, without reading an image."""
    rows = (
        Row(
            id=f"{record['key']}/{number}",
            image=image_path(folder.folder, record["image"]),
            size_hw=(record["height"], record["width"]),
            expression=item["text"],
            boxes=tuple(map(_box, boxes_of(item))),
            category="" if item["object"] is None else record["objects"][item["object"]]["name"],
            kind=item["kind"],
        )
        for record in folder.records
        for number, item in enumerate(record["expressions"])
    )
    return _asked(rows, task, tally)


def rows_of_samples(
    samples: Iterable[Sample], root: str | Path, tally: Tally | None = None, *, task: Task = "box"
) -> list[Row]:
    """Return a row for every expression that the task can ask; images lie below `root`.

    The task "set" takes any number of boxes, but no box twice. For the others, expressions with no box, or with
    several, have no one true box. What cannot be asked is left out and counted in `tally`. For captions what is said of
    a given region is a row too; to find that region by it may not be possible.
    """
    rows = (
        Row(
            id=whole_characters(f"{sample.id}/{number}"),
            image=Path(root) / whole_characters(sample.image),
            size_hw=sample.meta.size_hw,
            expression=whole_characters(expression),
            boxes=tuple(map(_box, boxes)),
            category=sample.category,
            kind=sample.kind or (_HOW_MANY[min(len(boxes), 2)] if task == "set" else ""),
        )
        for sample in samples
        for number, (expression, boxes) in enumerate(_sentences(sample, task))
    )
    return _asked(rows, task, tally)


def _box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


def _asked(rows: Iterable[Row], task: Task, tally: Tally | None) -> list[Row]:
    kept = []
    for row in rows:
        if task == "set":
            issue = Issue.REPEATED_BOX if count_repeats(row.boxes) else None
        else:
            issue = None if len(row.boxes) == 1 else Issue.AMBIGUOUS if row.boxes else Issue.NO_BOX
        if issue is None:
            kept.append(row)
        elif tally is not None:
            tally.add(issue, row.id, row.expression)
    return kept


def _sentences(sample: Sample, task: Task) -> Iterator[tuple[str, tuple[Numbers, ...]]]:
    for turn in sample.turns:
        match turn:
            case Locate(expression, boxes):
                yield expression, boxes
            case Describe(boxes, description) if task == "caption":
                yield description, boxes


def whole_characters(text: str) -> str:
    """Return the text with `?` for half a character, which JSON and models can hold, and no file nor tokenizer can."""
    return text.encode(errors="replace").decode()


def image_id(file: str, row_id: str) -> str:
    """Name the image that a row is about: its file, or what stands before the row's number in its id."""
    return file or row_id.rpartition("/")[0] or row_id


def plan(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Return the batches, as numbers of rows: all about one image together, beside images and sentences alike.

    A model then encodes each image once, and pads little. A batch may stay a little short, where the questions about
    the next images do not fit.
    """
    if batch_size < 1:
        raise VPPError(f"batch_size must be at least 1, but is {batch_size}.")
    about: dict[str, list[int]] = {}
    for number in sorted(range(len(rows)), key=lambda i: (-len(rows[i].expression), i)):
        about.setdefault(image_id(rows[number].file, rows[number].id), []).append(number)
    groups = sorted(
        about.values(), key=lambda group: (rows[group[0]].size_hw, len(rows[group[0]].expression), group), reverse=True
    )
    pieces = deque(group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size))
    batches = []
    while pieces:
        batch: list[int] = []
        passed: list[list[int]] = []
        while pieces and len(batch) < batch_size and len(passed) < LOOK_AHEAD:
            piece = pieces.popleft()
            if len(batch) + len(piece) <= batch_size:
                batch += piece
            else:
                passed.append(piece)
        pieces.extendleft(reversed(passed))
        batches.append(batch)
    return batches


def check_rows(rows: Sequence[Row]) -> None:
    """Raise VPPError for no rows, repeated ids, unusable boxes and missing image files, before anything is asked."""
    if not rows:
        raise VPPError("there is nothing to evaluate: the data hold no row.")
    if len({row.id for row in rows}) < len(rows):
        seen: set[str] = set()
        twice = next(row.id for row in rows if row.id in seen or seen.add(row.id))  # type: ignore[func-returns-value]
        raise VPPError(f"rows must have ids of their own, but '{twice}' comes twice: number them.")
    for row in rows:
        for box in row.boxes:
            if fault := box_fault(box, row.size_hw):
                raise VPPError(
                    f"the true box of row '{row.id}', {shown_box(box)}, {fault}, so that no answer could be right: "
                    "leave the row out, or correct its box."
                )
        if len(row.boxes) > 1 and count_repeats(row.boxes):
            raise VPPError(f"row '{row.id}' has the same true box twice: leave the row out, or one of the two.")
    if missing := sorted({str(row.image) for row in rows if isinstance(row.image, Path) and not row.image.is_file()}):
        raise VPPError(f"{len(missing)} images are missing: {few(missing)}. Give their folder.")


def fingerprint(rows: Iterable[Any]) -> str:
    """Return the SHA-256 of the ids, sizes, sentences and boxes of rows, or of the answers to them, in order.

    Images' bytes are not read.
    """
    digest = hashlib.sha256()
    for row in rows:
        boxes = [list(map(float, box)) for box in row.boxes]
        line = [row.id, *row.size_hw, row.expression, *(boxes[0] if len(boxes) == 1 else boxes)]
        digest.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
