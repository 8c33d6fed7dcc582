"""The neutral sample: an image and what is said about it, with boxes in pixels; and what can be wrong with one.

Data are kept so, and a family of models renders them in its own words, frame and unit when they are loaded.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, TypeAlias

from vpp_plugins.boxes import ImageMeta
from vpp_plugins.errors import VPPError

Numbers: TypeAlias = tuple[float, ...]
"""One box. In a Sample: x1, y1, x2, y2 in pixels. In a Record: whatever its file says, unchecked."""

BOX = "<bbox>"
"""Stands for a box in the text of a Talk; the boxes follow in the same order."""
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Locate:
    """An expression, and the boxes of all that it describes: one, several, or none where nothing is there."""

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
    0 (not known) only where no turn has a box, or says that there is none. `split`, `category` (of what is there) and
    `kind` (of the expression) are what the file says, "" where it says nothing.
    """

    id: str
    image: str
    width: int
    height: int
    turns: tuple[Turn, ...]
    split: str = ""
    category: str = ""
    kind: str = ""

    @property
    def meta(self) -> ImageMeta:
        """The image's size as codecs take it. Raises VPPError where the size is not known."""
        return ImageMeta((self.height, self.width))

    def located(self) -> Iterator[Locate]:
        """Yield the expressions with their boxes, and skip what else is said."""
        return (turn for turn in self.turns if isinstance(turn, Locate))

    def readable(self) -> str:
        """Return the sample for people: a line for its image, and one for each turn, boxes rounded to the pixel."""
        size = f", {self.width} x {self.height}" if self.width else ""
        return "\n".join(
            [f"{self.id}: {self.image or 'no image'}{size}", *(f"    {_line(turn)}" for turn in self.turns)]
        )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build a sample from what `to_row` gave."""
        turns = tuple(turn for entry in row["turns"] if (turn := turn_of(entry)) is not None)
        return cls(**{**row, "turns": turns})

    def to_row(self) -> dict[str, Any]:
        """Return plain JSON values: our own format."""
        turns = [_entry(turn) for turn in self.turns]
        row = {"id": self.id, "image": self.image, "width": self.width, "height": self.height, "turns": turns}
        about = {"split": self.split, "category": self.category, "kind": self.kind}
        return row | {name: said for name, said in about.items() if said}

    def line(self) -> bytes:
        """Return the row as one line of JSON, always the same for the same sample: digests are made of it."""
        try:
            return json.dumps(self.to_row(), ensure_ascii=False, sort_keys=True).encode()
        except UnicodeEncodeError:  # half a character, which JSON can only say as an escape
            return json.dumps(self.to_row(), sort_keys=True).encode()


class Issue(StrEnum):
    """What can be wrong with a sample. Those in `KEPT` are kept or cut; the others cost the turn or the sample."""

    NOT_FINITE = "box with NaN or infinity"
    HUGE_NUMBER = "box with a number beyond a million"
    WRONG_COUNT = "box with a wrong count of numbers"
    INVERTED = "inverted box (x2 < x1 or y2 < y1)"
    FLAT = "box without an area"
    OUTSIDE = "box wholly outside its image"
    CLIPPED = "box beyond the edge, cut to its image"
    NO_BOX = "box expected, none found"
    AMBIGUOUS = "several boxes where one is expected"
    REPEATED_BOX = "the same box twice for one expression"
    ODD_LIST = "list of numbers that is no box, kept as text"
    OTHER_WORDS = "question answered by boxes alone, in words that are not known, kept as text"
    PLACEHOLDER = "text that holds the box placeholder itself"
    IMAGE_REPEATED = "<image> more than once in a dialogue"
    IMAGE_MISSING = "image without an <image> in the dialogue"
    IMAGE_UNNAMED = "mark of an image, as <image>, in a dialogue that names none"
    BAD_FIELD = "field missing or of the wrong type"
    BAD_TURNS = "turns that do not alternate"
    EMPTY_TEXT = "empty expression"
    NO_TURNS = "no turn left"
    UNSAFE_PATH = "image path that leaves its folder"
    NO_IMAGE = "image missing or unreadable"
    REPEATED_ID = "id or name that stands for two different things, neither used"
    IMAGE_RENAMED = "image with the name of another one, numbered"
    CROWD = "crowd annotation, skipped"
    OTHER_SPLIT = "sample of another split, skipped"
    NOT_SELECTED = "sample without a region, not selected"
    SKIPPED_SOURCE = "sample of a source that the recipe leaves out"
    COUNT_DIFFERS = "count differs from the published one"
    MARKED_WRONG = "expression that a review marked as wrong, left out"
    NOT_WRITABLE = "turn that the format cannot hold, left out"


KEPT = frozenset(
    {
        Issue.CLIPPED,
        Issue.ODD_LIST,
        Issue.OTHER_WORDS,
        Issue.IMAGE_REPEATED,
        Issue.IMAGE_MISSING,
        Issue.IMAGE_RENAMED,
        Issue.COUNT_DIFFERS,
    }
)
"""Issues that are cut or kept; all others cost the turn or the sample."""

CHOSEN = frozenset({Issue.CROWD, Issue.OTHER_SPLIT, Issue.NOT_SELECTED, Issue.SKIPPED_SOURCE, Issue.MARKED_WRONG})
"""Not faults of the data: what was asked for leaves these out."""


class RefusedError(VPPError):
    """What of a file is not used, and the issue as which that is counted."""

    def __init__(self, issue: Issue, detail: str = "") -> None:
        super().__init__(detail)
        self.issue = issue


@dataclass
class Tally:
    """Counts of issues, and for each the first samples that have it."""

    counts: Counter[Issue] = field(default_factory=Counter)
    examples: dict[Issue, list[str]] = field(default_factory=dict)

    def add(self, issue: Issue, sample_id: str, detail: str = "") -> None:
        """Count one issue of a sample; the detail is kept for the first few only."""
        self.counts[issue] += 1
        if self.counts[issue] <= _EXAMPLES:
            said = f"{sample_id}: {detail[:120]}" if detail else sample_id
            said = said.encode(errors="replace").decode()  # JSON can hold half a character, which cannot be printed
            self.examples.setdefault(issue, []).append(said)

    def take(self, other: "Tally", issue: Issue) -> None:
        """Count what another tally has of one issue too, with its examples."""
        if other.counts[issue]:
            self.counts[issue] += other.counts[issue]
            self.examples.setdefault(issue, []).extend(other.examples[issue])

    @contextmanager
    def counting(self, sample_id: str) -> Iterator[None]:
        """Count what the block refuses of a sample, and go on behind it."""
        try:
            yield
        except RefusedError as refused:
            self.add(refused.issue, sample_id, str(refused))

    def nothing_left(self, said: str, source: object, format_name: str, images: object = None) -> VPPError:
        """Return the error for a file of which nothing is left: what was found, and the command that shows more."""
        found = "; ".join(
            f"{count:,} x {issue} ({self.examples[issue][0]})" for issue, count in self.counts.most_common()
        )
        folder = [] if images is None else ["--images", str(images)]
        command = shlex.join(["vpp", "doctor", str(source), "--format", format_name, *folder])
        return VPPError(f"{said}{f': {found}' if found else ''}. What is wrong: {command}")

    def rows(self) -> list[tuple[str, int, str]]:
        """Return (issue, count, examples) for each issue, the most frequent first."""
        return [(str(issue), count, "; ".join(self.examples[issue])) for issue, count in self.counts.most_common()]


def turn_of(entry: Any) -> Turn | None:
    """Return what `to_row` made of a turn, or None where an entry is none; numbers are not checked."""
    match entry:
        case {"locate": str(expression), "boxes": listed} if (boxes := _boxes(listed)) is not None:
            return Locate(expression, boxes)
        case {"describe": listed, "text": str(description)} if (boxes := _boxes(listed)) is not None:
            return Describe(boxes, description)
        case {"ask": str(question), "answer": str(answer)} if (boxes := _boxes(entry.get("boxes", []))) is not None:
            return Talk(question, answer, boxes)
    return None


def text_of_turn(turn: Turn) -> str:
    """Return all that a turn says, without its boxes."""
    match turn:
        case Locate(said) | Describe(_, said):
            return said
        case Talk(question, answer):
            return f"{question}\n{answer}"


def numbers_of(value: Any) -> Numbers | None:
    """Return a list of numbers as floats, of any length, or None. What does not fit a float is infinite."""
    listed = isinstance(value, list | tuple)
    if not listed or not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
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


def _line(turn: Turn) -> str:
    boxes = ", ".join(str([round(number) for number in box]) for box in turn.boxes)
    match turn:
        case Locate(expression):
            return f"locate {expression!r}: {boxes or 'nothing'}"
        case Describe(_, description):
            return f"describe {boxes}: {description!r}"
        case Talk(question, answer):
            return f"ask {question!r}: {answer!r}{f' ({boxes})' if boxes else ''}"


def _boxes(value: Any) -> tuple[Numbers, ...] | None:
    boxes = [numbers_of(box) for box in value] if isinstance(value, list) else [None]
    return None if None in boxes else tuple(box for box in boxes if box is not None)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")
