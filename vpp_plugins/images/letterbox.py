"""Letterbox images for the detector."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def letterbox(image: Image.Image, side: int) -> Float[Tensor, "3 side side"]:
    """Fit an RGB image into a square, centred, ImageNet-normalised, with exact zeros around it.

    No 8-bit value normalises to exactly 0 (255 times no ImageNet mean is an integer), so the zeros tell padding from
    image. Same arithmetic as VPP-LLaVA's test transforms: 8-bit bilinear resize, then offsets of half the padding,
    rounded down.
    """
    ratio = side / max(image.size)
    width, height = (max(1, round(length * ratio)) for length in image.size)
    resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    canvas = torch.zeros(3, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    normalise(resized, IMAGENET_MEAN, IMAGENET_STD, into=canvas[:, top : top + height, left : left + width])
    return canvas


def letterboxes(images: Sequence[Image.Image], side: int) -> Float[Tensor, "images 3 side side"]:
    """Return every image as `letterbox` does, in one batch; an object that comes several times is fitted once."""
    fitted: dict[int, Tensor] = {}
    for image in images:
        if id(image) not in fitted:
            fitted[id(image)] = letterbox(image, side)
    return torch.stack([fitted[id(image)] for image in images])


def normalise(
    pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], *, into: Float[Tensor, "3 height width"]
) -> None:
    """Write 8-bit pixels [height, width, 3], from 0 to 1 and normalised: in place, so that no more floats are held."""
    means, stds = (torch.tensor(numbers)[:, None, None] for numbers in (mean, std))
    into.copy_(torch.from_numpy(pixels).permute(2, 0, 1)).div_(255).sub_(means).div_(stds)
