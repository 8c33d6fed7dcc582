"""Raw answers as JSON lines: what a model said, with all it takes to judge it again without the model."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vpp_plugins.boxes import Box, ImageMeta, box_fault
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.rows import Row, whole_characters
from vpp_plugins.files import sealed, unsealed

ANSWERS = "answers.jsonl"
_BATCH = "a batch of answers"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A row and the text that a model gave for it."""

    id: str
    image: str
    """The image's file, or empty where it had none."""
    size_hw: tuple[int, int]
    processed_size_hw: tuple[int, int] | None
    """Size in which the host's processor showed it to the model, for families that measure boxes there."""
    expression: str
    boxes: tuple[Box, ...]
    """The true boxes, xyxy pixels of the original image; none where nothing is there."""
    category: str
    kind: str
    text: str
    error: str = ""
    """Why there is no answer: the image could not be read."""

    @property
    def meta(self) -> ImageMeta:
        """What the box codec must know of the image."""
        return ImageMeta(self.size_hw, self.processed_size_hw)

    @classmethod
    def of(cls, row: Row, text: str, meta: ImageMeta | None, error: str = "") -> "Answer":
        """Join a row and its answer; `meta` is what the processor made of the image, None where it was not read."""
        return cls(
            id=row.id,
            image=row.file,
            size_hw=row.size_hw,
            processed_size_hw=None if meta is None else meta.processed_size_hw,
            expression=row.expression,
            boxes=row.boxes,
            category=row.category,
            kind=row.kind,
            text=whole_characters(text),
            error=error,
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Answer":
        """Build from JSON values; raises ValueError that names what is of another type, or no usable box."""
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__} instead of an object")
        if "box" in values:  # 0.1.0 had the one box
            values = {**values, "boxes": [values["box"]]}
            del values["box"]
        for name, value in values.items():
            if not _fits(name, value):
                raise ValueError(f"its {name} is {value!r}")
        for box in values["boxes"]:
            if not _are_numbers(box, 4):
                raise ValueError(f"its box is {box!r}")
            if fault := box_fault(box, tuple(values["size_hw"])):
                raise ValueError(f"its box is {box}, which {fault}")
        processed = values["processed_size_hw"]
        tuples = {
            "size_hw": tuple(values["size_hw"]),
            "processed_size_hw": None if processed is None else tuple(processed),
            "boxes": tuple(map(tuple, values["boxes"])),
        }
        return cls(**{**values, **tuples})


def _fits(name: str, value: Any) -> bool:
    if name == "boxes":
        return isinstance(value, list | tuple)
    if name in ("size_hw", "processed_size_hw"):
        known = _are_numbers(value, 2) and all(isinstance(side, int) and side > 0 for side in value)
        return known or (name == "processed_size_hw" and value is None)
    return isinstance(value, str)


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(type(one) in (int, float) for one in value)


def read_answers(path: Path) -> list[Answer]:
    """Read a file of answers; raises VPPError that names the first line that is not one."""
    if not path.is_file():
        raise VPPError(f"there are no answers at '{path}': give the folder of a finished `vpp eval`.")
    answers = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                answers.append(Answer.from_json(json.loads(line)))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise VPPError(
                    f"line {number} of '{path}' is no answer ({error!r}): put a copy of the file back, or delete it "
                    "and run the evaluation again."
                ) from None
    return answers


def answer_lines(answers: Iterable[Answer]) -> str:
    """Return the text of a file of answers."""
    return "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)


class Ledger:
    """The answers of a running evaluation, a line per batch: a batch is on the disk as a whole, or not at all.

    Every process appends to a file of its own, and reads those of all processes, also of earlier runs.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.file = folder / f"batches-{rank:04d}.jsonl"

    def read(self) -> dict[int, list[Answer]]:
        """Return every batch that was finished, by number; raises VPPError that names a line which is no batch."""
        return {
            number: answers for file in sorted(self.folder.glob("batches-*.jsonl")) for number, answers in _whole(file)
        }

    def append(self, number: int, answers: Sequence[Answer]) -> None:
        """Add a batch, and return when it has reached the disk."""
        batch = {"batch": number, "answers": [asdict(answer) for answer in answers]}
        line = json.dumps(sealed(batch, _BATCH), ensure_ascii=False)
        with self.file.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def cut_torn_line(self) -> None:
        """Cut off the line that a killed process left unfinished at the end of this process's file."""
        if not self.file.exists():
            return
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.file.open("r+b") as file:
                file.truncate(whole)

    def clear(self) -> None:
        """Remove the files, once their answers stand in one."""
        for file in self.folder.glob("batches-*.jsonl"):
            file.unlink()


def _whole(file: Path) -> list[tuple[int, list[Answer]]]:
    batches = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):  # what a killed process left
            continue
        try:
            values = unsealed(json.loads(line), _BATCH)
            batches.append((int(values["batch"]), [Answer.from_json(answer) for answer in values["answers"]]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise VPPError(
                f"line {number} of '{file}' is no batch of answers ({error!r}): delete that line and run the same "
                "command again; it asks that batch anew, and all others stay as they are."
            ) from None
    return batches
