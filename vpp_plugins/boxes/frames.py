"""Boxes in their image: their frame, which of them are usable, what is cut off, and how much two overlap.

In plain floats: evaluation and rewards compare one pair at a time.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, SupportsFloat, TypeAlias

from vpp_plugins.errors import VPPError

Box: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, y2; pixels of the original image unless a name says otherwise. x grows to the right, y downwards."""

BoxLike: TypeAlias = Iterable[SupportsFloat]
"""What is taken for a box: a Box, or four numbers in a list, array or tensor."""

Frame: TypeAlias = Literal["square", "image"]
"""What boxes are measured on, and so what axes span: the image padded to a square, as LLaVA does, or the image."""

FRAMES_OF_0_1_0: dict[str, Frame] = {"padded": "square", "original": "image", "resized": "image"}
"""What codecs of plugins may still say until 0.2."""


@dataclass(frozen=True)
class ImageMeta:
    """What a codec has to know of an image.

    `size_hw` is the original size and `processed_size_hw` the size after the host's processor resized it (only families
    that count its pixels need it), both in pixels. `image_index` says which image of the prompt it is, from 0. No
    family of the table writes it into the box text, so codecs carry it and do not use it.
    """

    size_hw: tuple[int, int]
    processed_size_hw: tuple[int, int] | None = None
    image_index: int = 0

    def __post_init__(self) -> None:
        for name, size_hw in (("size_hw", self.size_hw), ("processed_size_hw", self.processed_size_hw)):
            if size_hw is not None and (len(size_hw) != 2 or min(size_hw) < 1):
                raise VPPError(f"{name} must be (height, width), each at least 1 pixel, and is {size_hw}.")


def padded_square(size_hw: tuple[int, int]) -> tuple[int, int, int]:
    """Return (side, offset_x, offset_y) of the square that the LLaVA data pad an image to.

    The offsets say where the image's top left corner lies in the square: half of what is missing, rounded down.
    """
    height, width = size_hw
    side = max(height, width)
    return side, (side - width) // 2, (side - height) // 2


def frame_rectangle(frame: Frame, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the frame in pixels of the original image; padding begins below 0."""
    height, width = size_hw
    if frame == "square":
        side, offset_x, offset_y = padded_square(size_hw)
        return -offset_x, -offset_y, side, side
    return 0, 0, width, height


class BoxStatus(StrEnum):
    """What became of a box, or of an answer that holds none."""

    OK = "ok"
    CLIPPED = "clipped"
    """Part of it lay outside the image, by more than half a step of the unit; what is left is returned."""
    INVERTED = "inverted"
    """x2 < x1 or y2 < y1; returned with its corners reordered, and clipped where it needed that too."""
    UNPARSABLE = "unparsable"
    """The answer holds no box, or none that lies in its image; none is returned."""
    NONE = "none"
    """The answer says that there is nothing, or is an empty list; no box is returned."""

    @property
    def word(self) -> str:
        """The status as commands print it: "ok" was taken for a right box, and says that the answer could be read."""
        return "readable" if self is BoxStatus.OK else str(self)


def worst_status(statuses: Iterable[BoxStatus]) -> BoxStatus:
    """Return the status that says most against an answer: the last of theirs in the order of `BoxStatus`."""
    return max(statuses, key=list(BoxStatus).index)


class BoxFault(StrEnum):
    """Why a box marks no place in its image; the values complete the sentence "the box ..."."""

    WRONG_COUNT = "is not four numbers x1, y1, x2, y2"
    NOT_FINITE = "holds a number that is not finite"
    INVERTED = "has x2 < x1 or y2 < y1"
    OUTSIDE = "lies wholly outside its image"
    FLAT = "has no area"


def box_fault(box: BoxLike, size_hw: tuple[int, int] | None = None) -> BoxFault | None:
    """Return why an xyxy box is not usable, or None: the one definition, for true boxes and for answers.

    A usable box has four finite numbers, its corners in order, and an area in its image, if that one's size is given.
    A box without an area that lies in the image, such as rounding makes of a thin one, is FLAT and not OUTSIDE.
    """
    try:
        x1, y1, x2, y2 = map(float, box)
    except (TypeError, ValueError):
        return BoxFault.WRONG_COUNT
    except OverflowError:  # an integer of hundreds of digits
        return BoxFault.NOT_FINITE
    if not (math.isfinite(x1) and math.isfinite(y1) and math.isfinite(x2) and math.isfinite(y2)):
        return BoxFault.NOT_FINITE
    if x2 < x1 or y2 < y1:
        return BoxFault.INVERTED
    flat = x1 == x2 or y1 == y2
    if size_hw is not None and not (x1 >= 0 and y1 >= 0 and x2 <= size_hw[1] and y2 <= size_hw[0]):
        left, top, right, bottom = clip((x1, y1, x2, y2), size_hw)
        beyond = x2 < 0 or y2 < 0 or x1 > size_hw[1] or y1 > size_hw[0]
        if beyond or (not flat and (left == right or top == bottom)):
            return BoxFault.OUTSIDE
    return BoxFault.FLAT if flat else None


def shown_box(box: BoxLike) -> str:
    """Return a box as a message shows it, whatever it is."""
    try:
        text = str(tuple(map(float, box)))
    except (TypeError, ValueError, OverflowError):
        text = (
            f"({', '.join(type(number).__name__ for number in box)})" if isinstance(box, Iterable) else str(type(box))
        )
    return text if len(text) <= 120 else f"{text[:120]} ..."


def inside_image(box: Box, size_hw: tuple[int, int], slack_xy: tuple[float, float]) -> tuple[Box | None, BoxStatus]:
    """Reorder a box's corners and cut it to its image; what exceeds it by up to the slack does not count as clipped.

    None and unparsable where cutting would leave nothing, or where a number is not finite. A box without an area
    within its image stays as it is: a coarse unit writes thin objects so.
    """
    x1, y1, x2, y2 = box
    if 0 <= x1 <= x2 <= size_hw[1] and 0 <= y1 <= y2 <= size_hw[0]:
        return box, BoxStatus.OK
    if not all(map(math.isfinite, box)):
        return None, BoxStatus.UNPARSABLE
    ordered = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    kept = clip(ordered, size_hw)
    cut_x = max(abs(ordered[0] - kept[0]), abs(ordered[2] - kept[2]))
    cut_y = max(abs(ordered[1] - kept[1]), abs(ordered[3] - kept[3]))
    exceeds = cut_x > slack_xy[0] or cut_y > slack_xy[1]
    if exceeds and (kept[0] == kept[2] or kept[1] == kept[3]):
        return None, BoxStatus.UNPARSABLE
    if ordered != box:
        return kept, BoxStatus.INVERTED
    return kept, BoxStatus.CLIPPED if exceeds else BoxStatus.OK


def clip(box: Box, size_hw: tuple[int, int]) -> Box:
    """Cut a box to its image; what lies wholly outside becomes a point or a line on the border."""
    bottom, right = float(size_hw[0]), float(size_hw[1])
    x1, y1, x2, y2 = box
    return (
        min(max(0.0, x1), right),
        min(max(0.0, y1), bottom),
        min(max(0.0, x2), right),
        min(max(0.0, y2), bottom),
    )


def box_iou(a: BoxLike, b: BoxLike) -> float:
    """Return intersection over union of two xyxy boxes, 0 to 1.

    Corners are not reordered: a box of no area, or with x2 < x1, overlaps nothing and gives 0.
    """
    overlap, union, _ = _areas(a, b)
    return overlap / union if overlap > 0 else 0.0


def generalized_box_iou(a: BoxLike, b: BoxLike) -> float:
    """Return IoU minus the share of the smallest enclosing box that neither covers, -1 to 1 (arXiv 1902.09630).

    Two boxes whose enclosing box has no area give 0.
    """
    overlap, union, hull = _areas(a, b)
    if hull == 0:
        return 0.0
    return (overlap / union if overlap > 0 else 0.0) - (hull - union) / hull


def _areas(a: BoxLike, b: BoxLike) -> tuple[float, float, float]:
    """Areas of the intersection, of the union, and of the smallest box around both."""
    ax1, ay1, ax2, ay2 = map(float, a)
    bx1, by1, bx2, by2 = map(float, b)
    area_a, area_b = _area((ax1, ay1, ax2, ay2)), _area((bx1, by1, bx2, by2))
    overlap = _area((max(ax1, bx1), max(ay1, by1), min(ax2, bx2), min(ay2, by2)))
    hull = _area((min(ax1, bx1), min(ay1, by1), max(ax2, bx2), max(ay2, by2)))
    return overlap, area_a + area_b - overlap, hull


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
