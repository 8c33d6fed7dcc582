"""Making both branches' pixels of one image: VPPProcessor against the two pipelines of VPP-LLaVA's own code.

Its code is written anew below, from a description of what it does, on the versions installed here: pad to a square,
Pillow's bicubic and transformers' CLIP arithmetic for the vision encoder; torchvision's transforms, and a place on a
canvas of zeros, for the detector.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional
from transformers import LlavaImageProcessor

from benchmarks.rows import Row, interleaved, median_row, ratios
from vpp_adapters.vpp_llava.adapter import process_as_trained
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD, letterbox
from vpp_plugins.prompts import CLIP_MEAN, CLIP_STD

SIDE, DETECTOR_SIDE = 336, 640
LEVEL = 1 / 255 / min(CLIP_STD)
"""How far one 8-bit level is, at most, in the vision encoder's pixels."""
IMAGES = {"COCO, 640 x 480": (640, 480), "Flickr, 333 x 500": (333, 500), "a photograph of 1280 x 853": (1280, 853)}


def measure(rounds: int = 40) -> list[Row]:
    """Return how much faster ours is for three sizes of image; raises where a pixel differs.

    The vision encoder's pixels are transformers' own in both, by Pillow and by torchvision.
    """
    same = [_row(name, size, rounds, our_pixels()) for name, size in IMAGES.items()]
    quick = [
        _row(f"{name}, LLaVA's default by torchvision", size, rounds, default_pixels(), levels=2)
        for name, size in IMAGES.items()
    ]
    return [*same, *quick]


def _row(
    name: str,
    size: tuple[int, int],
    rounds: int,
    ours: Callable[[Image.Image], tuple[Tensor, Tensor]],
    *,
    levels: int = 0,
) -> Row:
    image = photograph(size)
    for theirs, mine in zip(reference_pixels(image), ours(image), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6 + levels * LEVEL, rtol=0)
    times = interleaved(
        {"reference": lambda: reference_pixels(image), "ours": lambda: ours(image)}, rounds=rounds, warm_up=5
    )
    own = 1000 * sorted(times["ours"])[rounds // 2]
    return median_row(
        f"preprocessing, {name}",
        ratios(times["reference"], times["ours"]),
        unit="x",
        better="more",
        note=f"{own:.1f} ms an image, where the reference's pipelines take "
        f"{1000 * sorted(times['reference'])[rounds // 2]:.1f} ms; the pixels are "
        f"{f'within {levels} 8-bit levels' if levels else 'the same'}",
    )


def our_pixels() -> Callable[[Image.Image], tuple[Tensor, Tensor]]:
    """Return what VPPProcessor does with the images of a VPP-LLaVA."""
    processor = SimpleNamespace(image_processor=_default())
    process_as_trained(processor)
    return lambda image: _both(processor.image_processor, image)


def default_pixels() -> Callable[[Image.Image], tuple[Tensor, Tensor]]:
    """Return what VPPProcessor does with the images of any other LLaVA."""
    processor = _default()
    return lambda image: _both(processor, image)


def _default() -> LlavaImageProcessor:
    return LlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_pad=True)


def _both(image_processor: Any, image: Image.Image) -> tuple[Tensor, Tensor]:
    return image_processor(image, return_tensors="pt")["pixel_values"][0], letterbox(image, DETECTOR_SIDE)


def reference_pixels(image: Image.Image) -> tuple[Tensor, Tensor]:
    """Return the vision encoder's pixels and the detector's, as VPP-LLaVA's own code makes them."""
    return _for_clip(image), _for_detector(image)


def _for_clip(image: Image.Image) -> Tensor:
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in CLIP_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.array(square)
    resized = np.array(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    cropped = np.ascontiguousarray(resized)  # the crop of the middle: all of it
    rescaled = (cropped * (1 / 255)).astype(np.float32)
    normalised = (rescaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def _for_detector(image: Image.Image) -> Tensor:
    ratio = DETECTOR_SIDE / max(image.size)
    size_hw = [round(image.height * ratio), round(image.width * ratio)]
    resized = functional.resize(image, size_hw)
    normalised = functional.normalize(functional.to_tensor(resized), IMAGENET_MEAN, IMAGENET_STD)
    canvas = torch.zeros(3, DETECTOR_SIDE, DETECTOR_SIDE)
    top, left = (round((DETECTOR_SIDE - length) / 2 - 0.1) for length in size_hw)
    canvas[:, top : top + size_hw[0], left : left + size_hw[1]] = normalised
    return canvas


def photograph(size: tuple[int, int]) -> Image.Image:
    """Return a smooth image with some noise, width x height."""
    width, height = size
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-8, 9, smooth.shape, dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
