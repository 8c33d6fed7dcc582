"""The neutral sample: an image and what is said about it, with boxes in pixels of the original image.

Data are kept so, and a family of models renders them in its own words, frame and unit when they are loaded.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from vpp_plugins.boxes import ImageMeta

Numbers: TypeAlias = tuple[float, ...]
"""One box. In a Sample: x1, y1, x2, y2 in pixels. In a Record: whatever its file says, unchecked."""

BOX = "<bbox>"
"""Stands for a box in the text of a Talk; the boxes follow in the same order."""


@dataclass(frozen=True, slots=True)
class Locate:
    """An expression, and the boxes of what it describes."""

    expression: str
    boxes: tuple[Numbers, ...]


@dataclass(frozen=True, slots=True)
class Describe:
    """A region, and what is said of it."""

    boxes: tuple[Numbers, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Talk:
    """Any other question and its answer. Each `<bbox>` in them stands for one of the boxes, in order."""

    question: str
    answer: str
    boxes: tuple[Numbers, ...] = ()


Turn: TypeAlias = Locate | Describe | Talk


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and the turns of one dialogue about it. Boxes are xyxy in pixels of the upright original image.

    `image` is a path below the folder of images, or "" for a dialogue without an image. `width` and `height` may be
    0 (not known) only where no turn has a box. `split` and `category` are what the file says, "" where it says nothing.
    """

    id: str
    image: str
    width: int
    height: int
    turns: tuple[Turn, ...]
    split: str = ""
    category: str = ""

    @property
    def meta(self) -> ImageMeta:
        """The image's size as codecs take it. Raises VPPError where the size is not known."""
        return ImageMeta((self.height, self.width))

    def located(self) -> Iterator[Locate]:
        """Yield the expressions with their boxes, and skip what else is said."""
        return (turn for turn in self.turns if isinstance(turn, Locate))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build a sample from what `to_row` gave."""
        turns = tuple(turn for entry in row["turns"] if (turn := turn_of(entry)) is not None)
        return cls(**{**row, "turns": turns})

    def to_row(self) -> dict[str, Any]:
        """Return plain JSON values: our own format."""
        turns = [_entry(turn) for turn in self.turns]
        row = {"id": self.id, "image": self.image, "width": self.width, "height": self.height, "turns": turns}
        return row | {name: said for name, said in (("split", self.split), ("category", self.category)) if said}

    def line(self) -> bytes:
        """Return the row as one line of JSON, always the same for the same sample: digests are made of it."""
        try:
            return json.dumps(self.to_row(), ensure_ascii=False, sort_keys=True).encode()
        except UnicodeEncodeError:  # half a character, which JSON can only say as an escape
            return json.dumps(self.to_row(), sort_keys=True).encode()


def turn_of(entry: Any) -> Turn | None:
    """Return what `to_row` made of a turn, or None where an entry is none; numbers are not checked."""
    match entry:
        case {"locate": str(expression), "boxes": list(listed)}:
            boxes = _boxes(listed)
            return None if boxes is None else Locate(expression, boxes)
        case {"describe": list(listed), "text": str(description)}:
            boxes = _boxes(listed)
            return None if boxes is None else Describe(boxes, description)
        case {"ask": str(question), "answer": str(answer)}:
            boxes = _boxes(entry.get("boxes", []))
            return None if boxes is None else Talk(question, answer, boxes)
    return None


def numbers_of(value: Any) -> Numbers | None:
    """Return a list of numbers as floats, of any length, or None. What does not fit a float is infinite."""
    if not isinstance(value, list | tuple):
        return None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return None
    return tuple(_float(number) for number in value)


def _entry(turn: Turn) -> dict[str, Any]:
    boxes = [list(box) for box in turn.boxes]
    match turn:
        case Locate(expression):
            return {"locate": expression, "boxes": boxes}
        case Describe(_, description):
            return {"describe": boxes, "text": description}
        case Talk(question, answer):
            return {"ask": question, "answer": answer, "boxes": boxes}


def _boxes(value: Any) -> tuple[Numbers, ...] | None:
    boxes = [numbers_of(box) for box in value] if isinstance(value, list) else [None]
    return None if None in boxes else tuple(box for box in boxes if box is not None)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")
