"""The boxes of a whole data set as columns of numbers, and what is wrong with them."""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from vpp_plugins.data.doctor.findings import Fault, Finding
from vpp_plugins.data.doctor.frame_candidates import Candidate, Columns, Sizes
from vpp_plugins.data.doctor.frame_evidence import FrameVerdict, agreement, judge
from vpp_plugins.data.sample import Numbers

_JUDGED = 20_000
_BLOCK = 50_000
_SHOWN = 5


class BoxColumns:
    """Boxes of one declared unit: four numbers, the image's (width, height), and the row; a million take 60 MB."""

    def __init__(self, declared: Candidate) -> None:
        self.declared = declared
        self._numbers, self._sizes, self._rows = array("d"), array("d"), array("q")

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
            fractions = f"They lie within 0 to 1, among others that fit {candidate}."
            found += self._counted(Fault.WRONG_UNIT, self._fractions(candidate), ids, fractions)
            ordered, inside = map(np.concatenate, zip(*self._agreements(candidate), strict=True))
            outside = f"As {candidate}, they reach beyond their images."
            backwards = "The second corner lies before the first."
            found += self._counted(Fault.OUT_OF_RANGE, ordered & ~inside, ids, outside)
            found += self._counted(Fault.INVERTED, ~ordered, ids, backwards)
            corners = candidate.corners(self.numbers)
            flat = (corners[:, :2] == corners[:, 2:]).any(axis=1)
            found += self._counted(Fault.FLAT, flat, ids, "Nothing lies in them, and no answer can overlap them.")
        return found

    def _fractions(self, candidate: Candidate) -> Bool[np.ndarray, " n"]:
        """Say of each box whether it is written in 0-1 where the candidate's numbers are far larger."""
        if candidate.unit.full == 1:
            return np.zeros(len(self), dtype=bool)
        broken = (self.numbers != np.round(self.numbers)).any(axis=1)
        return np.asarray((np.abs(self.numbers) <= 1).all(axis=1) & broken)

    def _agreements(self, candidate: Candidate) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield `agreement` block by block, for the memory; boxes without an image's size count as in order."""
        for start in range(0, len(self), _BLOCK):
            numbers, sizes_wh = self.numbers[start : start + _BLOCK], self.sizes_wh[start : start + _BLOCK]
            unknown = np.isnan(sizes_wh).any(axis=1)
            ordered, inside = agreement(numbers, sizes_wh, candidate)
            yield ordered | unknown, inside | unknown

    def _counted(self, fault: Fault, wrong: Bool[np.ndarray, " n"], ids: Sequence[str], meaning: str) -> list[Finding]:
        places = np.flatnonzero(wrong)
        first = tuple(dict.fromkeys(ids[self._rows[place]] for place in places[:50].tolist()))[:_SHOWN]
        return [Finding(fault, len(places), len(self), meaning, first)] if len(places) else []


def _differences(declared: Candidate, best: Candidate) -> list[Fault]:
    faults = []
    if (declared.unit.full, declared.resize) != (best.unit.full, best.resize):
        faults.append(Fault.WRONG_UNIT)
    if not declared.resize and not best.resize and declared.unit.frame != best.unit.frame:
        faults.append(Fault.WRONG_FRAME)
    orders = {declared.unit.order, best.unit.order}
    if len(orders) == 2:
        named = {"yxyx": Fault.WRONG_ORDER, "cxcywh": Fault.CENTRE_AS_CORNER}
        faults.append(next((named[order] for order in named if order in orders), Fault.XYWH_AS_XYXY))
    return faults
