"""Draw the axis picture that a global prompt starts from, and the band it covers.

Geometry after the published checkpoint's axis image (white ground, one-pixel frame, ten-pixel ticks, labels inside); the font is
Pillow's own free one, so the glyphs differ from the published picture, whose font may not be redistributed.
"""

from typing import assert_never

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vpp_plugins.config import AxisStyle, AxisUnit

TICK = 10 / 336
LABEL_GAP = 14 / 336


def draw_axes(
    size: int, *, style: AxisStyle = "edge-0.1", unit: AxisUnit = "0-1", font_size: int = 10, border: int = 30
) -> Image.Image:
    """Return black axes on white, `size` x `size` pixels, y growing downwards.

    "edge-0.1" and "edge-0.05" tick all four edges in these steps, "cross" ticks two lines through the centre, "padding" ticks the
    inner rim of a band of `border` pixels, where the picture shrunk to the inside will stand.
    """
    image = Image.new("L", (size, size), 255)
    draw = ImageDraw.Draw(image)
    count = 20 if style == "edge-0.05" else 10
    font = ImageFont.load_default(size=max(4, min(font_size, round(0.42 * size / count))))  # labels must not touch
    low, high = (border, size - 1 - border) if style == "padding" else (0, size - 1)
    positions = [(low + int(i * (high - low + 1) / count), _label(i / count, unit, count)) for i in range(1, count)]
    match style:
        case "edge-0.1" | "edge-0.05":
            _edges(draw, positions, size, font)
        case "cross":
            _cross(draw, positions, size, font)
        case "padding":
            _outside(draw, positions, low, high, font)
        case _:
            assert_never(style)
    return image.convert("RGB")


def band_mask(size: int, border: int, style: AxisStyle) -> Float[Tensor, "size size"]:
    """Return 1 where the prompt lies and 0 elsewhere: a frame of `border` pixels, or for "cross" two central bars as wide."""
    mask = torch.zeros(size, size)
    if style == "cross":
        start = (size - border) // 2
        mask[start : start + border] = 1
        mask[:, start : start + border] = 1
        return mask
    mask += 1
    mask[border : size - border, border : size - border] = 0
    return mask


def _label(value: float, unit: AxisUnit, count: int) -> str:
    if unit == "0-1000":
        return f"{round(value * 1000)}"
    return f"{value:.1f}" if count == 10 else f"{value:.2f}"


Positions = list[tuple[int, str]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _edges(draw: ImageDraw.ImageDraw, positions: Positions, size: int, font: Font) -> None:
    last, tick, gap = size - 1, round(TICK * size), round(LABEL_GAP * size)
    draw.rectangle((0, 0, last, last), outline=0)
    for at, label in positions:
        draw.line((at, 0, at, tick), fill=0)
        draw.line((at, last - tick, at, last), fill=0)
        draw.line((0, at, tick, at), fill=0)
        draw.line((last - tick, at, last, at), fill=0)
        draw.text((at, gap), label, fill=0, font=font, anchor="mt")
        draw.text((at, last - gap), label, fill=0, font=font, anchor="mb")
        draw.text((gap, at), label, fill=0, font=font, anchor="lm")
        draw.text((last - gap, at), label, fill=0, font=font, anchor="rm")


def _cross(draw: ImageDraw.ImageDraw, positions: Positions, size: int, font: Font) -> None:
    middle, half = size // 2, max(1, round(TICK * size) // 2)
    draw.line((0, middle, size - 1, middle), fill=0)
    draw.line((middle, 0, middle, size - 1), fill=0)
    for at, label in positions:
        if abs(at - middle) <= half:
            continue
        draw.line((at, middle - half, at, middle + half), fill=0)
        draw.line((middle - half, at, middle + half, at), fill=0)
        draw.text((at, middle + half + 2), label, fill=0, font=font, anchor="mt")
        draw.text((middle + half + 2, at), label, fill=0, font=font, anchor="lm")


def _outside(draw: ImageDraw.ImageDraw, positions: Positions, low: int, high: int, font: Font) -> None:
    tick = max(2, low // 3)
    draw.rectangle((low, low, high, high), outline=0)
    for at, label in positions:
        draw.line((at, low - tick, at, low), fill=0)
        draw.line((at, high, at, high + tick), fill=0)
        draw.line((low - tick, at, low, at), fill=0)
        draw.line((high, at, high + tick, at), fill=0)
        draw.text((at, low - tick - 1), label, fill=0, font=font, anchor="mb")
        draw.text((at, high + tick + 1), label, fill=0, font=font, anchor="mt")
        draw.text((low - tick - 1, at), label, fill=0, font=font, anchor="rm")
        draw.text((high + tick + 1, at), label, fill=0, font=font, anchor="lm")
