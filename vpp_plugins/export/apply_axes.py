"""Lay a model's axes over a picture, before the model's own image processor sees it.

    python apply_axes.py photo.jpg photo-with-axes.png

`vpp bake` writes this file, together with axes.npz and axes.json, which must lie beside it. It needs numpy and Pillow.
The picture comes back at the size that the model's vision encoder takes, so its image processor leaves the pixels as
they are. Send it as PNG, or another format that loses nothing.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Axes:
    """What a trained global prompt amounts to: the result is `picture * (1 - shade) + add`, colours from 0 to 1."""

    add: np.ndarray
    """[height, width, 3]: the axes, with their share."""
    shade: np.ndarray
    """[height, width, 1]: the share of the picture that is taken away."""
    background: tuple[int, int, int] | None
    """8-bit colour with which pictures are padded to a square first; None: they are stretched to the size."""
    resample: int
    """Pillow's number of the filter that resizes pictures."""
    margins: tuple[int, int]
    """Pixels at the top and bottom, and at the left and right, that are kept free of the picture."""


def load_axes(folder: str | Path) -> Axes:
    """Read axes.npz and axes.json."""
    with np.load(Path(folder) / "axes.npz") as arrays:
        add, shade = arrays["add"], arrays["shade"]
    settings = json.loads((Path(folder) / "axes.json").read_text())
    background = settings["background"]
    return Axes(
        add=add,
        shade=shade,
        background=None if background is None else tuple(background),
        resample=settings["resample"],
        margins=tuple(settings["margins"]),
    )


def fit(picture: Image.Image, axes: Axes) -> Image.Image:
    """Return the picture at the size of the vision encoder, upright and RGB, without the axes."""
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    side = max(picture.size)
    if axes.background is not None and picture.size != (side, side):
        square = Image.new("RGB", (side, side), axes.background)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    height, width = axes.shade.shape[:2]
    return picture.resize((width, height), Image.Resampling(axes.resample))


def blend(fitted: Image.Image, axes: Axes) -> np.ndarray:
    """Return the colours with the axes on, [height, width, 3], mostly from 0 to 1: before rounding, and not clipped."""
    pixels = np.asarray(fitted, dtype=np.float32) / 255
    top, left = axes.margins
    if top or left:
        height, width = pixels.shape[:2]
        planes = [Image.fromarray(plane) for plane in np.ascontiguousarray(pixels.transpose(2, 0, 1))]
        size = (width - 2 * left, height - 2 * top)
        inner = np.stack([np.asarray(plane.resize(size, Image.Resampling.BILINEAR)) for plane in planes], axis=-1)
        pixels = np.pad(inner, ((top, top), (left, left), (0, 0)))
    return np.asarray(pixels * (1 - axes.shade) + axes.add)


def apply_axes(picture: Image.Image, axes: Axes) -> Image.Image:
    """Return the picture with the axes on, 8-bit RGB, at the size of the vision encoder."""
    colours = np.rint(blend(fit(picture, axes), axes) * 255).clip(0, 255)
    return Image.fromarray(colours.astype(np.uint8))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python apply_axes.py PICTURE RESULT.png")
    apply_axes(Image.open(sys.argv[1]), load_axes(Path(__file__).parent)).save(sys.argv[2])
