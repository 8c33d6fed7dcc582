"""The codec: boxes in pixels of the original image to a family's text, and an answer back to boxes."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vpp_plugins.boxes.answer import answer_of, says_nothing
from vpp_plugins.boxes.frames import (
    FRAMES_OF_0_1_0,
    Box,
    BoxFault,
    BoxLike,
    BoxStatus,
    Frame,
    ImageMeta,
    box_fault,
    clip,
    frame_rectangle,
    inside_image,
    shown_box,
)
from vpp_plugins.boxes.scales import Scale
from vpp_plugins.boxes.text import BoxText
from vpp_plugins.errors import VPPError


@dataclass(frozen=True)
class Decoded:
    """The boxes of an answer, in its order, in pixels of the original image.

    `labels` and `statuses` run along the boxes; a label is None where the text gives none. An answer without a box
    has the one status unparsable or none. `outside` counts the boxes that were left out, as they lie wholly outside
    the image.
    """

    boxes_xyxy_px: tuple[Box, ...]
    labels: tuple[str | None, ...]
    statuses: tuple[BoxStatus, ...]
    outside: int = 0


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
        numbers = [self._numbers(box, meta) for box in boxes_xyxy_px]
        if labels is not None and len(labels) != len(numbers):
            raise VPPError(f"Expected one label per box, got {len(labels)} labels for {len(numbers)} boxes.")
        return self.text.write(numbers, labels)

    def keeps_area(self, box_xyxy_px: BoxLike, meta: ImageMeta) -> bool:
        """Return whether a box has an area still when it is written in the family's unit and read again."""
        x1, y1, x2, y2 = self.scale.from_numbers(self._numbers(box_xyxy_px, meta))
        return x1 != x2 and y1 != y2

    def decode(self, text: str, meta: ImageMeta) -> Decoded:
        """Read every box of an answer. Never raises for the text: what is no box is unparsable, never zeros.

        Only the answer is read, not the thoughts before it (`answer_of`). The unit is the family's, whatever the size
        of the numbers.
        """
        geometry = self._geometry(meta)  # also where there is no box: a missing size is missing for every answer
        answer = answer_of(text)
        found = self.text.read(answer, self.scale.per_box) if self.text else []
        if not found:
            return Decoded((), (), (BoxStatus.NONE if says_nothing(answer) else BoxStatus.UNPARSABLE,))
        placed = [(*self._placed(numbers, geometry, meta.size_hw), label) for numbers, label in found]
        kept = [(box, status, label) for box, status, label in placed if box is not None]
        if not kept:
            return Decoded((), (), (BoxStatus.UNPARSABLE,), outside=len(placed))
        boxes, statuses, labels = zip(*kept, strict=True)
        return Decoded(boxes, labels, statuses, outside=len(placed) - len(kept))

    def to_pixels(self, numbers: Sequence[float], meta: ImageMeta) -> tuple[Box | None, BoxStatus]:
        """Turn one box's numbers, as the family writes them, into a box and say what became of it.

        None and unparsable where nothing of it lies in the image.
        """
        return self._placed(numbers, self._geometry(meta), meta.size_hw)

    def step_px(self, meta: ImageMeta) -> tuple[float, float]:
        """Return, in pixels of the original image, how far apart in x and in y two neighbouring numbers lie."""
        _, _, unit_x, unit_y = self._geometry(meta)
        return self.scale.step * unit_x, self.scale.step * unit_y

    def _numbers(self, box_xyxy_px: BoxLike, meta: ImageMeta) -> Sequence[float]:
        left, top, unit_x, unit_y = self._geometry(meta)
        x1, y1, x2, y2 = _inside(box_xyxy_px, meta)
        return self.scale.to_numbers(
            ((x1 - left) / unit_x, (y1 - top) / unit_y, (x2 - left) / unit_x, (y2 - top) / unit_y)
        )

    def _placed(
        self, numbers: Sequence[float], geometry: tuple[float, float, float, float], size_hw: tuple[int, int]
    ) -> tuple[Box | None, BoxStatus]:
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


def _inside(box: BoxLike, meta: ImageMeta) -> Box:
    """Check a box given by the user, and cut it to its image."""
    box = tuple(box)
    fault = box_fault(box, meta.size_hw)
    if fault is BoxFault.OUTSIDE:
        height, width = meta.size_hw
        raise VPPError(
            f"The box {shown_box(box)} lies wholly outside its image of width {width} and height {height}. "
            "Boxes are xyxy in pixels of the original image."
        )
    if fault is not None and fault is not BoxFault.FLAT:  # a thin box is written as a line where the unit is coarse
        raise VPPError(
            "A box must be four finite numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, and is "
            f"{shown_box(box)}. If it is xywh, add x to the width and y to the height first."
        )
    x1, y1, x2, y2 = map(float, box)
    return clip((x1, y1, x2, y2), meta.size_hw)
