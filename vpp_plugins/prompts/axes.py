"""Draw the axis image that a global prompt starts from, and the band it covers.

Geometry after the published checkpoint's axis image (white ground, one-pixel frame, ten-pixel ticks, labels inside);
the font is Pillow's own free one, so the glyphs differ from the published image, whose font may not be redistributed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vpp_plugins.config import AxisStyle, AxisUnit
from vpp_plugins.errors import VPPError

TICK = 10 / 336
LABEL_GAP = 14 / 336
SMALLEST_FONT = 4

Positions = list[tuple[int, str]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_axes(
    size: int, *, style: AxisStyle = "edge-0.1", unit: AxisUnit = "0-1", font_size: int = 10, border: int = 30
) -> Image.Image:
    """Return black axes on white, `size` x `size` pixels, y growing downwards.

    "edge-0.1" and "edge-0.05" tick all four edges in these steps, "cross" ticks two lines through the centre, "padding"
    ticks the inner rim of a band of `border` pixels, where the image shrunk to the inside will stand.
    Labels are at most `font_size` pixels high, smaller where the band is narrow, and left out where none could be read.
    """
    image = Image.new("L", (size, size), 255)
    draw = ImageDraw.Draw(image)
    count = 20 if style == "edge-0.05" else 10
    start, span = (border, size - 2 * border) if style == "padding" else (0, size)
    positions = [(start + int(i * span / count), _label(i / count, unit, count)) for i in range(1, count)]
    lines = {"edge-0.1": _edges, "edge-0.05": _edges, "cross": _cross, "padding": _outside}[style]
    lines(draw, positions, size, border, font_size)
    return image.convert("RGB")


def band_mask(size: int, border: int, style: AxisStyle) -> Float[Tensor, "size size"]:
    """Return 1 where the prompt lies, else 0: a frame of `border` pixels, or for "cross" two central bars as wide.

    Raises VPPError where nothing would be left between the frame's sides.
    """
    if not 0 < 2 * border < size:
        raise VPPError(f"border must be above 0 and below half of size, but is {border} at a size of {size} pixels.")
    mask = torch.zeros(size, size)
    if style == "cross":
        start = (size - border) // 2
        mask[start : start + border] = 1
        mask[:, start : start + border] = 1
    else:
        mask += 1
        mask[border : size - border, border : size - border] = 0
    return mask


def _label(value: float, unit: AxisUnit, count: int) -> str:
    return f"{round(value * 1000)}" if unit == "0-1000" else f"{value:.{1 if count == 10 else 2}f}"


def _edges(draw: ImageDraw.ImageDraw, positions: Positions, size: int, border: int, font_size: int) -> None:
    last, tick, gap = size - 1, min(round(TICK * size), round(border / 3)), min(round(LABEL_GAP * size), border // 2)
    font = _font(positions, border - gap - 1, font_size)
    draw.rectangle((0, 0, last, last), outline=0)
    for at, label in positions:
        shown = font if 2 * gap <= at <= last - 2 * gap else None  # in a corner the labels of two edges would overlap
        ticks, labels = ((0, tick), (last - tick, last)), ((gap, "mt", "lm"), (last - gap, "mb", "rm"))
        _mark(draw, at, ticks, label, shown, labels)


def _cross(draw: ImageDraw.ImageDraw, positions: Positions, size: int, border: int, font_size: int) -> None:
    middle = (size - border) // 2 + border // 2
    half = max(0, min(max(1, border // 10), border // 2 - 1))
    font = _font(positions, border - border // 2 - half - 1, font_size)
    draw.line((0, middle, size - 1, middle), fill=0)
    draw.line((middle, 0, middle, size - 1), fill=0)
    for at, label in positions:
        shown = font if abs(at - middle) > border // 2 else None
        _mark(draw, at, ((middle - half, middle + half),), label, shown, ((middle + half + 1, "mt", "lm"),))


def _outside(draw: ImageDraw.ImageDraw, positions: Positions, size: int, border: int, font_size: int) -> None:
    low, high, tick = border - 1, size - border, round(border / 3)
    font = _font(positions, low - tick - 1, font_size)
    draw.rectangle((low, low, high, high), outline=0)
    labels = ((low - tick - 1, "mb", "rm"), (high + tick + 1, "mt", "lm"))
    for at, label in positions:
        _mark(draw, at, ((low - tick, low), (high, high + tick)), label, font, labels)


def _mark(
    draw: ImageDraw.ImageDraw,
    at: int,
    ticks: Sequence[tuple[int, int]],
    label: str,
    font: Font | None,
    labels: Sequence[tuple[int, str, str]],
) -> None:
    """Draw one position of both axes: ticks from where to where, and labels, each with its anchors on x and on y."""
    for start, end in ticks:
        draw.line((at, start, at, end), fill=0)
        draw.line((start, at, end, at), fill=0)
    for place, on_x, on_y in labels if font is not None else ():
        draw.text((at, place), label, fill=0, font=font, anchor=on_x)
        draw.text((place, at), label, fill=0, font=font, anchor=on_y)


def _font(positions: Positions, room: int, font_size: int) -> Font | None:
    """Return the largest font whose labels fit `room` pixels of the band, which hides the rest, and their own step."""
    step = positions[1][0] - positions[0][0]
    for size in range(font_size, SMALLEST_FONT - 1, -1):
        font = ImageFont.load_default(size=size)
        boxes = [font.getbbox(label, anchor="lt") for _, label in positions]
        if max(right for _, _, right, _ in boxes) <= min(room, 0.8 * step) and boxes[0][3] <= room:
            return font
    return None
