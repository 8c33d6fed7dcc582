"""The neutral sample: an image and what is said about it, with boxes in pixels of the original image.

Data are kept so, and a family of models renders them in its own words, frame and unit when they are loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

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
