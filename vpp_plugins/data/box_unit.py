"""How a file that stores boxes as numbers means them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from vpp_plugins.boxes import Box, BoxStatus, Frame, ImageMeta, frame_rectangle, inside_image

Order: TypeAlias = Literal["xyxy", "xywh", "yxyx", "cxcywh"]
"""Two corners; a corner, width and height; two corners, y first; the middle, width and height, as in YOLO's files."""

_SLACK_PX = 0.5  # annotation tools round to the pixel


@dataclass(frozen=True)
class BoxUnit:
    """The frame, the number of its far edge (None: pixels), and the order of the four numbers."""

    frame: Frame = "original"
    full: float | None = None
    order: Order = "xyxy"
    per_box: ClassVar[int] = 4

    def __str__(self) -> str:
        unit = "pixels" if self.full is None else f"0-{self.full:g}"
        where = {"padded": " of the padded square", "original": "", "resized": " of the resized image"}[self.frame]
        return f"{self.order} in {unit}{where}"

    def to_pixels(self, numbers: Sequence[float], meta: ImageMeta) -> tuple[Box, BoxStatus]:
        """Turn one box's numbers into xyxy pixels of the original image, and say what became of it.

        A box that lies in its image, or beyond the edge by less than half a pixel, is returned as it is.
        """
        x1, y1, x2, y2 = numbers
        if self.order == "xywh":
            x2, y2 = x1 + x2, y1 + y2
        elif self.order == "yxyx":
            x1, y1, x2, y2 = y1, x1, y2, x2
        elif self.order == "cxcywh":
            x1, y1, x2, y2 = x1 - x2 / 2, y1 - y2 / 2, x1 + x2 / 2, y1 + y2 / 2
        if self.frame != "original" or self.full is not None:
            left, top, width, height = frame_rectangle(self.frame, meta.size_hw)
            across, down = (1.0, 1.0) if self.full is None else (width / self.full, height / self.full)
            x1, y1, x2, y2 = x1 * across + left, y1 * down + top, x2 * across + left, y2 * down + top
        box = (x1, y1, x2, y2)
        settled, status = inside_image(box, meta.size_hw, (_SLACK_PX, _SLACK_PX))
        return (box if status is BoxStatus.OK else settled), status


PIXELS = BoxUnit()
PIXELS_XYWH = BoxUnit(order="xywh")
RELATIVE = BoxUnit(full=1.0)
