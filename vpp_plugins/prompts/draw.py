"""Images of the axes: themselves, and laid over an image."""

import numpy as np
import torch
from PIL import Image, ImageOps

from vpp_plugins.boxes import padded_square
from vpp_plugins.prompts.global_vpp import GlobalVPP


def draw_overlay(prompt: GlobalVPP, image: Image.Image, *, gain: float = 1.0, side: int | None = None) -> Image.Image:
    """Return the padded square of the image as a vision encoder of so many pixels sees it; None is the prompt's size.

    `gain` multiplies what the prompt changed, so that a blend of a few per cent becomes visible; 1 is the truth.
    """
    side = side or prompt.prompt.shape[-1]
    mean, std = (np.array(value, dtype=np.float32) for value in (prompt.image_mean, prompt.image_std))
    square = _pad_to_square(image, tuple(int(channel * 255) for channel in mean)).resize((side, side))
    pixels = torch.from_numpy((np.array(square, dtype=np.float32) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        overlaid = prompt(pixels.to(prompt.prompt)).float().cpu()
    return _to_image((pixels + gain * (overlaid - pixels))[0].permute(1, 2, 0).numpy() * std + mean)


def draw_prompt(prompt: GlobalVPP) -> Image.Image:
    """Return the axes themselves, as an image of the prompt's size."""
    mean, std = (np.array(value, dtype=np.float32) for value in (prompt.image_mean, prompt.image_std))
    return _to_image(prompt.prompt.detach().float().cpu().permute(1, 2, 0).numpy() * std + mean)


def _to_image(shown: np.ndarray) -> Image.Image:
    """Turn colours [height, width, 3] from 0 to 1 into an image; what lies beyond is cut."""
    return Image.fromarray((shown * 255).clip(0, 255).round().astype(np.uint8))


def _pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    side, left, top = padded_square((image.height, image.width))
    border = (left, top, side - image.width - left, side - image.height - top)
    return ImageOps.expand(image.convert("RGB"), border, colour)
