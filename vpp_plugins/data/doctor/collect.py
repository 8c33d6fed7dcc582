"""What the doctor keeps of the samples as they pass: columns of boxes, hashes of what was said, names of images."""

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool

from vpp_plugins.boxes import BoxCodec, box_iou
from vpp_plugins.data.doctor.frame_evidence import (
    Candidate,
    Columns,
    FrameVerdict,
    Sizes,
    agreement,
    declared_candidate,
    judge,
)
from vpp_plugins.data.doctor.statistics import Sayings
from vpp_plugins.data.record import BoxUnit, ImageSizes, Record, count_marks, fault
from vpp_plugins.data.sample import CHOSEN, KEPT, Describe, Issue, Locate, Numbers, Talk, Tally, Turn
from vpp_plugins.errors import VPPError


class Fault(StrEnum):
    """What can be wrong with a data set."""

    WRONG_UNIT = "wrong unit"
    WRONG_FRAME = "wrong frame"
    XYWH_AS_XYXY = "xywh taken for xyxy"
    CENTRE_AS_CORNER = "middle and size of a box taken for corners"
    WRONG_ORDER = "x and y in the wrong order"
    OUT_OF_RANGE = "boxes out of range"
    INVERTED = "inverted boxes"
    FLAT = "boxes without an area"
    BROKEN_BOX = "broken boxes"
    IMAGE_REPEATED = "repeated <image>"
    IMAGE_MISSING = "missing <image>"
    UNREADABLE = "unreadable images"
    UNSAFE_PATH = "unsafe image paths"
    SIZE_DIFFERS = "sizes that are not the images'"
    DUPLICATE = "duplicate samples"
    CONFLICT = "conflicting samples"
    LEAKAGE = "images shared with the other set"
    EMPTY_TEXT = "empty expressions"
    UNDECIDED = "boxes that may be written in several ways"
    NO_SAMPLES = "no samples"
    BAD_ROW = "rows that cannot be used"


@dataclass(frozen=True)
class Finding:
    """One fault: how often out of how many, what it means, and the first samples or images that have it."""

    fault: Fault
    count: int
    total: int
    meaning: str
    examples: tuple[str, ...] = ()
    fix: str = ""
    """The command that mends it, or shows what must be decided."""

    def __str__(self) -> str:
        share = f" of {self.total:,} ({self.count / self.total:.1%})" if self.total else ""
        seen = f" First: {'; '.join(self.examples)}." if self.examples else ""
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{self.fault}: {self.count:,}{share}. {self.meaning}{seen}{fix}"


_EXAMPLES = 12
_JUDGED = 20_000
_BLOCK = 50_000
_SHOWN = 5


class BoxColumns:
    """Boxes of one declared unit: four numbers, the image's (width, height), and the row; a million take 60 MB."""

    def __init__(self, declared: Candidate, unit: BoxUnit | BoxCodec) -> None:
        self.declared, self.unit = declared, unit  # the unit is kept, or another could get its id
        self._numbers, self._sizes, self._rows = array("d"), array("d"), array("q")
        self.fractions: set[int] = set()
        """Rows with boxes in 0-1 among others, as `findings` found them."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, numbers: Numbers, size_wh: tuple[int, int] | None) -> None:
        """Add a box of four finite numbers."""
        self._numbers.extend(numbers)
        self._sizes.extend(size_wh or (float("nan"), float("nan")))
        self._rows.append(row)

    @property
    def numbers(self) -> Columns:
        """The file's own numbers."""
        return np.frombuffer(self._numbers, dtype=np.float64).reshape(-1, 4)

    @property
    def sizes_wh(self) -> Sizes:
        """The size of each box's image, NaN where it is not known."""
        return np.frombuffer(self._sizes, dtype=np.float64).reshape(-1, 2)

    def judged(self) -> FrameVerdict | None:
        """Judge frame and unit on at most 20,000 boxes, drawn at random where there are more."""
        chosen = np.arange(len(self))
        if len(self) > _JUDGED:
            chosen = np.random.default_rng(0).choice(len(self), _JUDGED, replace=False)
        return judge(self.numbers[chosen], self.sizes_wh[chosen], self.declared)

    def findings(self, verdict: FrameVerdict | None, ids: Sequence[str]) -> list[Finding]:
        """Name what is wrong with frame and unit, and count the boxes that are wrong under the likeliest of them."""
        candidate, found = self.declared, []
        if verdict is not None and verdict.contradicts:
            fit = " or ".join(map(str, (verdict.best, *verdict.rivals[:1])))
            shared = [set(_differences(self.declared, rival)) for rival in verdict.rivals]
            found = [
                Finding(fault, len(self), len(self), f"Declared as {self.declared}, the boxes fit {fit}.")
                for fault in _differences(self.declared, verdict.best)
                if all(fault in differences for differences in shared)
            ]
            candidate = verdict.best if found else self.declared
        if len(self):
            among, outside, backwards, flat = map(np.concatenate, zip(*self._wrong(candidate), strict=True))
            self.fractions = {self._rows[place] for place in np.flatnonzero(among).tolist()}
            for fault, wrong, meaning in (
                (Fault.WRONG_UNIT, among, f"They lie within 0 to 1, among others that fit {candidate}."),
                (Fault.OUT_OF_RANGE, outside, f"As {candidate}, they reach beyond their images."),
                (Fault.INVERTED, backwards, "The second corner lies before the first."),
                (Fault.FLAT, flat, "Nothing lies in them, and no answer can overlap them."),
            ):
                found += self._counted(fault, wrong, ids, meaning)
        return found

    def blocks(self) -> Iterator[tuple[Columns, Sizes]]:
        """Yield the numbers and sizes of some boxes at a time: what is reckoned with all of them takes 40 MB a step."""
        for start in range(0, len(self), _BLOCK):
            yield self.numbers[start : start + _BLOCK], self.sizes_wh[start : start + _BLOCK]

    def _wrong(self, candidate: Candidate) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield, block by block, which boxes are in 0-1 where the candidate's numbers are far larger, which reach
        beyond their images, which are inverted, and which have no area; without an image's size only the last.
        """
        for numbers, sizes_wh in self.blocks():
            known = ~np.isnan(sizes_wh).any(axis=1)
            ordered, inside = agreement(numbers, sizes_wh, candidate)
            broken = (numbers != np.round(numbers)).any(axis=1)
            among = (np.abs(numbers) <= 1).all(axis=1) & broken & (candidate.unit.full != 1)
            corners = candidate.corners(numbers)
            flat = (corners[:, :2] == corners[:, 2:]).any(axis=1)
            yield among, known & ordered & ~inside, known & ~ordered, flat

    def _counted(self, fault: Fault, wrong: Bool[np.ndarray, " n"], ids: Sequence[str], meaning: str) -> list[Finding]:
        places = np.flatnonzero(wrong)
        first = tuple(dict.fromkeys(ids[self._rows[place]] for place in places[:50].tolist()))[:_SHOWN]
        return [Finding(fault, len(places), len(self), meaning, first)] if len(places) else []


def _differences(declared: Candidate, best: Candidate) -> list[Fault]:
    faults = []
    if (declared.unit.full, declared.unit.resized) != (best.unit.full, best.unit.resized):
        faults.append(Fault.WRONG_UNIT)
    if not declared.resized and not best.resized and declared.unit.frame != best.unit.frame:
        faults.append(Fault.WRONG_FRAME)
    orders = {declared.unit.order, best.unit.order}
    if len(orders) == 2:
        named = {"yxyx": Fault.WRONG_ORDER, "cxcywh": Fault.CENTRE_AS_CORNER}
        faults.append(next((named[order] for order in named if order in orders), Fault.XYWH_AS_XYXY))
    return faults


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
        self.repeats = Repeats()
        self._rng, self._boxed = random.Random(0), 0
        self.columns: dict[int, BoxColumns] = {}
        """The boxes of each declared unit, by its id."""
        self.sayings = Sayings()
        self._two_sizes: list[str] = []
        self.ids: list[str] = []
        self.images: dict[str, tuple[int, int] | None] = {}
        """Names of images with the sizes that the data state."""
        self.examples: list[Example] = []

    def add(self, row: int, record: Record) -> None:
        """Look at one record."""
        self.ids.append(record.id)
        self.repeats.add(row, record)
        self.sayings.add(record)
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
        found = self.repeats.findings(self.ids)
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

    def notes(self, verdicts: Mapping[BoxColumns, FrameVerdict | None], undecided: str) -> list[str]:
        """Return what was found that is no fault, and what could not be judged; `undecided` is what must be stated."""
        notes = [f"{count:,} x {issue}." for issue, count in self._read.counts.items() if issue in CHOSEN | KEPT]
        if any(len(columns) and verdict is None for columns, verdict in verdicts.items()):
            notes.append("Frame and unit of the boxes could not be judged: no image's size is known.")
        open_ = [one for one in verdicts.values() if one is not None and not one.decided and not undecided]
        notes += [f"So the boxes are read as the file says, {one.declared}." for one in open_]
        return notes

    def _size(self, record: Record) -> tuple[int, int] | None:
        try:
            return record.size_wh or self._sizes(record.image)
        except VPPError:  # the check of the images names it, where there is a folder
            return None

    def _add_boxes(self, row: int, record: Record, boxes: list[Numbers], size_wh: tuple[int, int] | None) -> None:
        key = id(record.unit)  # a codec is slow to hash, and a reader uses one object throughout
        if key not in self.columns:
            declared = declared_candidate(record.unit)
            if declared is None:
                return
            self.columns[key] = BoxColumns(declared, record.unit)
        columns = self.columns[key]
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
        self.duplicates: list[int] = []
        self._conflicts: list[int] = []

    def add(self, row: int, record: Record) -> None:
        """Compare a sample with those before it, and remember it."""
        seen = [self._locate(turn, record) if _single(turn) else self._say(turn, record) for turn in record.turns]
        if seen and all(found is Fault.DUPLICATE for found in seen):
            self.duplicates.append(row)
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
            (Fault.DUPLICATE, self.duplicates, "Earlier samples say the same of the same images."),
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
