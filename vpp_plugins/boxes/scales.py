"""From a box in a family's unit to the numbers that it writes, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from vpp_plugins.boxes.frames import Box

Numbers: TypeAlias = tuple[int, ...] | tuple[float, ...]
"""One box's numbers in the order in which a family writes them; ints where it writes no decimals."""


@dataclass(frozen=True)
class Rounded:
    """Each coordinate rounded to the nearest number that the text can write; the number is read as it stands.

    `full` is the number of the frame's far edge; None counts the pixels of the processed image. `decimals` are the
    places behind the point. `y_first` writes y1, x1, y2, x2.
    """

    full: int | None
    decimals: int = 0
    y_first: bool = False
    per_box: ClassVar[int] = 4

    @property
    def step(self) -> float:
        """The distance between two neighbouring numbers, in the unit."""
        return 10.0**-self.decimals

    def to_numbers(self, box: Box) -> Numbers:
        x1, y1, x2, y2 = box
        written = (y1, x1, y2, x2) if self.y_first else box
        return tuple(round(value, self.decimals) for value in written) if self.decimals else tuple(map(round, written))

    def from_numbers(self, numbers: Sequence[float]) -> Box:
        first, second, third, fourth = numbers
        return (second, first, fourth, third) if self.y_first else (first, second, third, fourth)


@dataclass(frozen=True)
class Binned:
    """Each coordinate as the bin it falls into, 0 to full - 1; a bin is read as its middle."""

    full: int
    per_box: ClassVar[int] = 4
    step: ClassVar[float] = 1.0

    def to_numbers(self, box: Box) -> Numbers:
        return tuple(min(int(value), self.full - 1) for value in box)

    def from_numbers(self, numbers: Sequence[float]) -> Box:
        x1, y1, x2, y2 = numbers
        return x1 + 0.5, y1 + 0.5, x2 + 0.5, y2 + 0.5


@dataclass(frozen=True)
class Cells:
    """Kosmos-2's two patch indices: the cells, of a grid of full x full, that hold the box's two corners.

    Cells are read as their middles. Where the box lies in one row or column of cells, so that it would have no
    area, its two cells are read whole: that is what transformers' `patch_index_to_coordinate` does.
    """

    full: int
    per_box: ClassVar[int] = 2
    step: ClassVar[float] = 1.0

    def to_numbers(self, box: Box) -> Numbers:
        left, top = (min(int(value), self.full - 1) for value in box[:2])
        # The far corner belongs to the cell before a grid line, and never to one before the near corner's.
        right, bottom = max(left, math.ceil(box[2]) - 1), max(top, math.ceil(box[3]) - 1)
        return top * self.full + left, bottom * self.full + right

    def from_numbers(self, numbers: Sequence[float]) -> Box:
        (top, left), (bottom, right) = (divmod(number, self.full) for number in numbers)
        if left == right or top == bottom:
            return left, top, right + 1, bottom + 1
        return left + 0.5, top + 0.5, right + 0.5, bottom + 0.5


Scale: TypeAlias = Rounded | Binned | Cells
