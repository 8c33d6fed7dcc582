"""What the doctor keeps of the samples as they pass: columns of boxes, hashes of what was said, names of images."""

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vpp_plugins.boxes import BoxCodec, box_iou
from vpp_plugins.data.doctor.box_columns import BoxColumns
from vpp_plugins.data.doctor.findings import Fault, Finding
from vpp_plugins.data.doctor.frame_candidates import declared_candidate
from vpp_plugins.data.doctor.frame_evidence import FrameVerdict
from vpp_plugins.data.record import BoxUnit, ImageSizes, Record, count_marks, fault
from vpp_plugins.data.sample import CHOSEN, KEPT, Describe, Issue, Locate, Numbers, Talk, Tally, Turn
from vpp_plugins.errors import VPPError

_EXAMPLES = 12
_SHOWN = 5
_APART = 0.5

_NAMED = {
    Issue.IMAGE_REPEATED: (Fault.IMAGE_REPEATED, "The image would be put in several times."),
    Issue.IMAGE_MISSING: (Fault.IMAGE_MISSING, "The model would not see the image."),
    Issue.EMPTY_TEXT: (Fault.EMPTY_TEXT, "There is nothing to look for."),
    Issue.WRONG_COUNT: (Fault.BROKEN_BOX, "A box has not four numbers."),
    Issue.NOT_FINITE: (Fault.BROKEN_BOX, "A box holds NaN or infinity."),
    Issue.HUGE_NUMBER: (Fault.BROKEN_BOX, "A box holds a number beyond a million."),
}


@dataclass(frozen=True)
class Example:
    """A sample for the contact sheet, with its boxes as the file has them."""

    id: str
    image: str
    size_wh: tuple[int, int] | None
    text: str
    boxes: tuple[Numbers, ...]


class Collector:
    """Takes records one by one. `tally` is the reader's own: what it could not make a record of stands there."""

    def __init__(self, sizes: ImageSizes, tally: Tally) -> None:
        self._sizes, self._read, self._seen = sizes, tally, Tally()
        self._repeats = Repeats()
        self._rng, self._boxed = random.Random(0), 0
        self._columns: dict[int, tuple[BoxUnit | BoxCodec, BoxColumns]] = {}
        self._two_sizes: list[str] = []
        self.ids: list[str] = []
        self.images: dict[str, tuple[int, int] | None] = {}
        """Names of images with the sizes that the data state."""
        self.examples: list[Example] = []

    @property
    def columns(self) -> Mapping[int, BoxColumns]:
        """The boxes of each declared unit."""
        return {key: columns for key, (_, columns) in self._columns.items()}

    def add(self, row: int, record: Record) -> None:
        """Look at one record."""
        self.ids.append(record.id)
        self._repeats.add(row, record)
        if record.image:
            if self.images.setdefault(record.image, record.size_wh) is None:
                self.images[record.image] = record.size_wh
            if record.size_wh not in (None, self.images[record.image]):
                self._two_sizes.append(record.image)
            if record.image_marks is not None:
                count_marks(record.image_marks, record.id, self._seen)
        for turn in record.turns:
            if isinstance(turn, Locate) and not turn.expression.strip():
                self._seen.add(Issue.EMPTY_TEXT, record.id)
        if boxes := record.boxes:
            size_wh = self._size(record)
            self._add_boxes(row, record, boxes, size_wh)
            self._keep_some(record, boxes, size_wh)

    def findings(self) -> list[Finding]:
        """Return what is wrong with texts, single boxes and rows, and what is said twice."""
        found = self._repeats.findings(self.ids)
        if not self.ids:
            found.append(Finding(Fault.NO_SAMPLES, 1, 0, "No row could be read as a sample, nothing can be learned."))
        about = "Other samples state other sizes of the same images: one name may stand for two."
        count, shown = len(self._two_sizes), tuple(dict.fromkeys(self._two_sizes))[:_SHOWN]
        found.append(Finding(Fault.SIZE_DIFFERS, count, len(self.ids), about, shown))
        for issue, (named, meaning) in _NAMED.items():
            examples = tuple(self._seen.examples.get(issue, ()))
            found.append(Finding(named, self._seen.counts[issue], len(self.ids), meaning, examples))
        bad = [issue for issue in self._read.counts if issue not in CHOSEN | KEPT]
        meaning = ", ".join(f"{issue} ({self._read.counts[issue]:,})" for issue in bad)
        examples = tuple(example for issue in bad for example in self._read.examples[issue])[:_SHOWN]
        found.append(Finding(Fault.BAD_ROW, sum(self._read.counts[issue] for issue in bad), 0, f"{meaning}.", examples))
        return found

    def notes(self, verdicts: Mapping[BoxColumns, FrameVerdict | None]) -> list[str]:
        """Return what was found that is no fault, and what could not be judged."""
        notes = [f"{count:,} x {issue}." for issue, count in self._read.counts.items() if issue in CHOSEN | KEPT]
        if any(len(columns) and verdict is None for columns, verdict in verdicts.items()):
            notes.append("Frame and unit of the boxes could not be judged: no image's size is known.")
        return notes

    def _size(self, record: Record) -> tuple[int, int] | None:
        try:
            return record.size_wh or self._sizes(record.image)
        except VPPError:  # the check of the images names it, where there is a folder
            return None

    def _add_boxes(self, row: int, record: Record, boxes: list[Numbers], size_wh: tuple[int, int] | None) -> None:
        key = id(record.unit)  # a codec is slow to hash, and a reader uses one object throughout
        if key not in self._columns:
            declared = declared_candidate(record.unit)
            if declared is None:
                return
            self._columns[key] = (record.unit, BoxColumns(declared))
        columns = self._columns[key][1]
        for numbers in boxes:
            issue = fault(numbers, 4)
            if issue is None:
                columns.add(row, numbers, size_wh)
            else:
                self._seen.add(issue, record.id, str(list(numbers)))

    def _keep_some(self, record: Record, boxes: list[Numbers], size_wh: tuple[int, int] | None) -> None:
        """Keep twelve samples with boxes, each as likely as any other."""
        place = self._boxed if self._boxed < _EXAMPLES else self._rng.randrange(self._boxed + 1)
        self._boxed += 1
        if place < _EXAMPLES:
            example = Example(record.id, record.image, size_wh, _words(record), tuple(boxes))
            self.examples[place : place + 1] = [example]


def _words(record: Record) -> str:
    match next(turn for turn in record.turns if turn.boxes):
        case Locate(expression):
            return expression
        case Describe(_, description):
            return description
        case Talk(question):
            return question


class Repeats:
    """Remembers what was said of which image: hashes of texts and single boxes, 130 bytes a turn.

    A sample is a duplicate where earlier ones have said all of its turns. It conflicts where an earlier one gave the
    same expression of the same image another box (IoU below 0.5), so that one of the two must be wrong.
    """

    def __init__(self) -> None:
        self._said: set[int] = set()
        self._located: dict[int, int] = {}
        self._boxes = array("d")
        self._duplicates: list[int] = []
        self._conflicts: list[int] = []

    def add(self, row: int, record: Record) -> None:
        """Compare a sample with those before it, and remember it."""
        seen = [self._locate(turn, record) if _single(turn) else self._say(turn, record) for turn in record.turns]
        if seen and all(found is Fault.DUPLICATE for found in seen):
            self._duplicates.append(row)
        if Fault.CONFLICT in seen:
            self._conflicts.append(row)

    def _say(self, turn: Turn, record: Record) -> Fault | None:
        key = hash((record.image, turn))
        if key in self._said:
            return Fault.DUPLICATE
        self._said.add(key)
        return None

    def _locate(self, turn: Turn, record: Record) -> Fault | None:
        assert isinstance(turn, Locate)
        place = len(self._boxes)
        first = self._located.setdefault(hash((record.image, turn.expression.strip().lower())), place)
        if first == place:
            self._boxes.extend(turn.boxes[0])
            return None
        before = tuple(self._boxes[first : first + 4])
        if before == turn.boxes[0]:
            return Fault.DUPLICATE
        return Fault.CONFLICT if _iou(before, turn.boxes[0], record) < _APART else None

    def findings(self, ids: Sequence[str]) -> list[Finding]:
        """Return the duplicates and the conflicts, if there are any."""
        kinds = (
            (Fault.DUPLICATE, self._duplicates, "Earlier samples say the same of the same images."),
            (
                Fault.CONFLICT,
                self._conflicts,
                "Earlier samples give the same expressions other boxes in the same images.",
            ),
        )
        return [
            Finding(fault, len(rows), len(ids), meaning, tuple(ids[row] for row in rows[:_SHOWN]))
            for fault, rows, meaning in kinds
            if rows
        ]


def _single(turn: Turn) -> bool:
    return isinstance(turn, Locate) and len(turn.boxes) == 1 and fault(turn.boxes[0], 4) is None


def _iou(one: Numbers, other: Numbers, record: Record) -> float:
    """IoU does not depend on frame and unit, only on whether the last two numbers are a corner or lengths."""
    if isinstance(record.unit, BoxUnit) and record.unit.order == "xywh":
        one, other = ((x, y, x + width, y + height) for x, y, width, height in (one, other))
    return box_iou(one, other)
