"""Lay a model's axes over an image, before the model's own image processor sees it.

    python apply_axes.py photo.jpg photo-with-axes.png

`vpp bake` writes this file, together with axes.npz and axes.json, which must lie beside it. It needs numpy and Pillow.
The image comes back at the size that the model's vision encoder takes, so its image processor leaves the pixels as
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
    """What a trained global prompt amounts to: the result is `image * (1 - shade) + add`, colours from 0 to 1."""

    add: np.ndarray
    """[height, width, 3]: the axes, with their share."""
    shade: np.ndarray
    """[height, width, 1]: the share of the image that is taken away."""
    background: tuple[int, int, int] | None
    """8-bit colour with which images are padded to a square first; None: they are stretched to the size."""
    resample: int
    """Pillow's number of the filter that resizes images."""
    margins: tuple[int, int]
    """Pixels at the top and bottom, and at the left and right, that are kept free of the image."""


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


def fit(image: Image.Image, axes: Axes) -> Image.Image:
    """Return the image at the size of the vision encoder, upright and RGB, without the axes."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    side = max(image.size)
    if axes.background is not None and image.size != (side, side):
        square = Image.new("RGB", (side, side), axes.background)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    height, width = axes.shade.shape[:2]
    return image.resize((width, height), Image.Resampling(axes.resample))


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


def apply_axes(image: Image.Image, axes: Axes) -> Image.Image:
    """Return the image with the axes on, 8-bit RGB, at the size of the vision encoder."""
    colours = np.rint(blend(fit(image, axes), axes) * 255).clip(0, 255)
    return Image.fromarray(colours.astype(np.uint8))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python apply_axes.py IMAGE RESULT.png")
    apply_axes(Image.open(sys.argv[1]), load_axes(Path(__file__).parent)).save(sys.argv[2])
