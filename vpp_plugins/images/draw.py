"""Boxes drawn on an image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vpp_plugins.boxes import Box
from vpp_plugins.errors import VPPError

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Return a copy whose longer side has at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Box],
    *,
    labels: Sequence[str] | None = None,
    colours: Sequence[str] = COLOURS,
    thin: bool = False,
    note: str = "",
) -> Image.Image:
    """Return a copy of the image with xyxy pixel boxes on it, one colour each in turn.

    `labels`, one per box, are written on them; an empty one is left out. A `note` stands in the top left corner.
    """
    if labels is not None and len(labels) != len(boxes):
        raise VPPError(f"one label per box is expected, but {len(labels)} came for {len(boxes)} boxes.")
    drawn = image.convert("RGB").copy()
    canvas = ImageDraw.Draw(drawn)
    width = max(1, round(max(drawn.size) / 400)) if thin else max(2, round(max(drawn.size) / 200))
    font = ImageFont.load_default(size=max(10, round(max(drawn.size) / 32)))
    if note:
        _label(canvas, drawn.size, (0, 0, 0, 0), note, colours[0], font)
    for index, box in enumerate(boxes):
        colour = colours[index % len(colours)]
        canvas.rectangle(box, outline=colour, width=width)
        if labels is not None and labels[index]:
            _label(canvas, drawn.size, box, labels[index], colour, font)
    return drawn


def _label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0, box[0]), max(0, size[0] - width))
    y = box[1] - height if box[1] >= height else min(box[1], size[1] - height)
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    canvas.text((x + 3 - left, y + 3 - top), text, fill="white", font=font)
