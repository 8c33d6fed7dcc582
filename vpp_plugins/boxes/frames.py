"""The rectangle in which a family measures its boxes, seen from the original image."""

from collections.abc import Iterable
from dataclasses import dataclass
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
