"""The codec: boxes in pixels of the original image to a family's text, and an answer back to boxes."""

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vpp_plugins.boxes.frames import FRAMES_OF_0_1_0, Box, BoxLike, Frame, ImageMeta, frame_rectangle
from vpp_plugins.boxes.scales import Scale
from vpp_plugins.boxes.text import BoxText
from vpp_plugins.errors import VPPError

# An answer says that nothing is there only where it begins so, or holds an empty list: "I cannot find it" is no box.
_NOTHING = re.compile(
    r"\A\W*(?:none|nothing|null|not (?:found|present|visible)|there (?:is|are) (?:no|none|nothing|not)"
    r"|no (?:bounding )?(?:box(?:es)?|objects?|match(?:es)?|such))\b|\[\s*\]",
    re.IGNORECASE,
)


class BoxStatus(StrEnum):
    """What became of a box, or of an answer that holds none."""

    OK = "ok"
    CLIPPED = "clipped"
    """Part of it lay outside the image, by more than half a step of the unit; what is left is returned."""
    INVERTED = "inverted"
    """x2 < x1 or y2 < y1; returned with its corners reordered, and clipped where it needed that too."""
    UNPARSABLE = "unparsable"
    """The answer holds no box; none is returned."""
    NONE = "none"
    """The answer says that there is nothing, or is an empty list; no box is returned."""


@dataclass(frozen=True)
class Decoded:
    """The boxes of an answer, in its order, in pixels of the original image.

    `labels` and `statuses` run along the boxes; a label is None where the text gives none. An answer without a box
    has the one status unparsable or none.
    """

    boxes_xyxy_px: tuple[Box, ...]
    labels: tuple[str | None, ...]
    statuses: tuple[BoxStatus, ...]


@dataclass(frozen=True)
class BoxCodec:
    """One family's boxes: the frame they are measured in, the unit, the text, and the question that asks for them.

    `question` holds `{expr}`. A family whose `text` is None writes points: it takes no boxes and gives none.
    """

    family: str
    frame: Frame
    unit: str
    scale: Scale
    text: BoxText | None
    question: str

    def __post_init__(self) -> None:
        if self.frame in FRAMES_OF_0_1_0:
            new = FRAMES_OF_0_1_0[self.frame]
            text = f"the frame '{self.frame}' of the box format '{self.family}' is called '{new}' now."
            warnings.warn(text, DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "frame", new)

    def prompt(self, expression: str) -> str:
        """Return the family's request for the box of what the expression describes, without image placeholders."""
        return self.question.format(expr=expression)

    def encode(self, boxes_xyxy_px: Iterable[BoxLike], meta: ImageMeta, labels: Sequence[str] | None = None) -> str:
        """Write boxes as the family's models do; labels, one per box, are dropped where the format has none.

        What lies outside the image is cut off first. Raises VPPError for a box that is not finite, not ordered, or
        wholly outside: such a box is in another format or frame.
        """
        if self.text is None:
            raise VPPError(f"The family '{self.family}' writes points, not boxes. Choose another family for boxes.")
        left, top, unit_x, unit_y = self._geometry(meta)
        numbers = []
        for box in boxes_xyxy_px:
            x1, y1, x2, y2 = _inside(tuple(map(float, box)), meta)
            scaled = ((x1 - left) / unit_x, (y1 - top) / unit_y, (x2 - left) / unit_x, (y2 - top) / unit_y)
            numbers.append(self.scale.to_numbers(scaled))
        if labels is not None and len(labels) != len(numbers):
            raise VPPError(f"Expected one label per box, got {len(labels)} labels for {len(numbers)} boxes.")
        return self.text.write(numbers, labels)

    def decode(self, text: str, meta: ImageMeta) -> Decoded:
        """Read every box of an answer. Never raises for the text: what is no box is unparsable, never zeros.

        The unit is the family's, whatever the size of the numbers.
        """
        geometry = self._geometry(meta)  # also where there is no box: a missing size is missing for every answer
        found = self.text.read(text, self.scale.per_box) if self.text else []
        if not found:
            return Decoded((), (), (BoxStatus.NONE if _NOTHING.search(text) else BoxStatus.UNPARSABLE,))
        boxes, statuses = zip(*(self._placed(numbers, geometry, meta.size_hw) for numbers, _ in found), strict=True)
        return Decoded(boxes, tuple(label for _, label in found), statuses)

    def to_pixels(self, numbers: Sequence[float], meta: ImageMeta) -> tuple[Box, BoxStatus]:
        """Turn one box's numbers, as the family writes them, into a box and say what became of it."""
        return self._placed(numbers, self._geometry(meta), meta.size_hw)

    def step_px(self, meta: ImageMeta) -> tuple[float, float]:
        """Return, in pixels of the original image, how far apart in x and in y two neighbouring numbers lie."""
        _, _, unit_x, unit_y = self._geometry(meta)
        return self.scale.step * unit_x, self.scale.step * unit_y

    def _placed(
        self, numbers: Sequence[float], geometry: tuple[float, float, float, float], size_hw: tuple[int, int]
    ) -> tuple[Box, BoxStatus]:
        left, top, unit_x, unit_y = geometry
        x1, y1, x2, y2 = self.scale.from_numbers(numbers)
        box = (x1 * unit_x + left, y1 * unit_y + top, x2 * unit_x + left, y2 * unit_y + top)
        # Rounding alone can carry an edge half a step over the border: that is not clipping.
        half = 0.5 * self.scale.step * (1 + 1e-6)
        return inside_image(box, size_hw, (half * unit_x, half * unit_y))

    def _geometry(self, meta: ImageMeta) -> tuple[float, float, float, float]:
        """Where the frame begins, x and y, and how long one unit is along each; pixels of the original image."""
        left, top, width, height = frame_rectangle(self.frame, meta.size_hw)
        if self.scale.full is not None:
            return float(left), float(top), width / self.scale.full, height / self.scale.full
        if meta.processed_size_hw is None:
            raise VPPError(
                f"The family '{self.family}' writes boxes in pixels of the image as its processor resized it, and "
                "the image's processed_size_hw is missing. Pass ImageMeta(size_hw, processed_size_hw)."
            )
        processed_height, processed_width = meta.processed_size_hw
        return float(left), float(top), width / processed_width, height / processed_height


def inside_image(box: Box, size_hw: tuple[int, int], slack_xy: tuple[float, float]) -> tuple[Box, BoxStatus]:
    """Reorder a box's corners and cut it to its image; what exceeds it by up to the slack does not count as clipped."""
    if 0 <= box[0] <= box[2] <= size_hw[1] and 0 <= box[1] <= box[3] <= size_hw[0]:
        return box, BoxStatus.OK
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return _clip((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), size_hw), BoxStatus.INVERTED
    kept = _clip(box, size_hw)
    cut_x, cut_y = max(abs(x1 - kept[0]), abs(x2 - kept[2])), max(abs(y1 - kept[1]), abs(y2 - kept[3]))
    return kept, BoxStatus.CLIPPED if cut_x > slack_xy[0] or cut_y > slack_xy[1] else BoxStatus.OK


def _clip(box: Box, size_hw: tuple[int, int]) -> Box:
    x1, y1, x2, y2 = box
    bottom, right = float(size_hw[0]), float(size_hw[1])
    return (
        min(max(0.0, x1), right),
        min(max(0.0, y1), bottom),
        min(max(0.0, x2), right),
        min(max(0.0, y2), bottom),
    )


def _inside(box: tuple[float, ...], meta: ImageMeta) -> Box:
    """Check a box given by the user, and cut it to its image."""
    height, width = meta.size_hw
    if len(box) == 4 and 0 < box[0] <= box[2] <= width and 0 < box[1] <= box[3] <= height:  # -0.0 would be written so
        return box
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < box[0] or box[3] < box[1]:
        raise VPPError(
            f"A box must be four finite numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, and is {box}. "
            "If it is xywh, add x to the width and y to the height first."
        )
    x1, y1, x2, y2 = box
    if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
        raise VPPError(
            f"The box {box} lies wholly outside its image of width {width} and height {height}. "
            "Boxes are xyxy in pixels of the original image."
        )
    return _clip((x1, y1, x2, y2), meta.size_hw)
