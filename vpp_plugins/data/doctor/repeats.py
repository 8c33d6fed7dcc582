"""Samples that say again, or deny, what an earlier sample of the set has said."""

from array import array
from collections.abc import Sequence

from vpp_plugins.boxes import box_iou
from vpp_plugins.data.doctor.findings import Fault, Finding
from vpp_plugins.data.record import BoxUnit, Record, fault
from vpp_plugins.data.sample import Locate, Numbers, Turn

_SHOWN = 5
_APART = 0.5


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
