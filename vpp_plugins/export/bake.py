"""Turn a trained global prompt into a step before the host's image processor, for servers without this library."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from vpp_plugins.attach import active_vpp, attach_vpp, detach_vpp, host_state, unwrap
from vpp_plugins.errors import VPPError
from vpp_plugins.export.apply_axes import Axes, apply_axes, fit
from vpp_plugins.export.bake_readme import readme
from vpp_plugins.files import whole_folder
from vpp_plugins.processor import VPPProcessor, normalisation
from vpp_plugins.prompts import GlobalVPP

RESIZED_ALIKE = 2 / 255
"""Mean difference by which two bicubic filters may take a photograph apart; a crop or a shift is far beyond it."""
ROUNDING = 1e-5
"""What float32 leaves of a colour that is exactly 0 or 1."""


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What was written, and how far it is from the prompt that it replaces. Colours count from 0 to 1."""

    folder: Path
    size_hw: tuple[int, int]
    largest_difference: float
    """From the float overlay on the same 8-bit image, where nothing is clipped; rounding alone makes 0.5/255."""
    clipped: int
    """Colour values of the images tried that the axes push below 0 or above 1."""
    clippable: int
    """Colour values, of the 3 x height x width, that some image could have clipped."""
    images: int
    """Images tried."""


def drop_local_prompt(model: nn.Module, processor: VPPProcessor) -> VPPProcessor:
    """Attach the global prompt alone, in place, and return the processor for it.

    The model was trained with both: measure what it loses.
    """
    host = unwrap(model)
    before, backbone = active_vpp(host), host_state(model).backbone
    if before.global_vpp is None:
        raise VPPError("this model has no global prompt, so nothing would be left: there is nothing to bake.")
    detach_vpp(model)
    attach_vpp(model, replace(before.config, local_vpp=None), adapter=backbone)
    after = active_vpp(host)
    assert after.global_vpp is not None
    after.global_vpp.load_state_dict(before.global_vpp.state_dict())
    after.trained = before.trained
    return VPPProcessor(processor.processor, model)


def bake(model: nn.Module, processor: VPPProcessor, folder: str | Path, photos: Sequence[Image.Image]) -> Baked:
    """Write the global prompt as constant images and a small script that needs numpy and Pillow only.

    The script makes of an image what the vision encoder gets, axes on, in 8 bits; the host's image processor then only
    normalises. `photos`, some photographs, are what the result is compared on. Written are axes.npz and axes.json,
    apply_axes.py, axes.png to look at, and a README.md that says how to serve with them.

    Raises VPPError for a model with a local prompt, whose tokens no image can carry; for hosts that take images at
    their own size or in tiles; and where the result would be off by more than 1/255.
    """
    vpp, backbone = active_vpp(unwrap(model)), host_state(model).backbone
    if vpp.local_vpp is not None:
        raise VPPError(
            "this model has a local prompt, whose tokens an image cannot carry: bake a model attached with "
            "VPPConfig(local_vpp=None), or leave the local prompt out with drop_local_prompt (vpp bake --global-only)."
        )
    assert vpp.global_vpp is not None
    if not photos:
        raise VPPError("bake needs at least one image to compare on.")
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise VPPError(f"the folder '{folder}' holds other files: give a new or empty one.")
    images = processor.image_processor
    axes = _axes(vpp.global_vpp, images, _encoder_size(images, photos), square=backbone.frame == "square")
    baked = _compare(vpp.global_vpp, images, axes, target, photos)
    with whole_folder(target) as written:
        _write(written, axes, baked)
    return baked


@torch.no_grad()
def _axes(prompt: GlobalVPP, images: Any, size_hw: tuple[int, int], *, square: bool) -> Axes:
    """Return the prompt in raw colours: the gain and the offset of every pixel, asked of the overlay itself.

    It makes gain * x + offset of a pixel x = (r - mean) / std, and so of the raw colour r it makes
    gain * r + (1 - gain) * mean + std * offset.
    """
    overlay, (height, width) = prompt.overlay(), size_hw
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in normalisation(images))
    black = torch.zeros(1, 3, height, width)
    offset = overlay.blend(black)[0].float()
    gain = overlay.blend(black + 1)[0].float() - offset
    shade = 1 - gain
    top, left = (int((shade[0].amin(dim) > 0.5).sum()) // 2 if overlay.shrink else 0 for dim in (1, 0))
    return Axes(
        add=rearrange(shade * mean + std * offset, "c h w -> h w c").numpy(),
        shade=rearrange(shade[:1], "c h w -> h w c").numpy(),
        background=_eight_bit(mean.flatten().tolist()) if square else None,
        resample=int(images.resample),
        margins=(top, left),
    )


def _eight_bit(colour: Sequence[float]) -> tuple[int, int, int]:
    """Return the colour as LLaVA's image processors round it for padding."""
    red, green, blue = (int(255 * value) for value in colour)
    return red, green, blue


def _encoder_size(images: Any, photos: Sequence[Image.Image]) -> tuple[int, int]:
    """Return height and width that every image reaches the encoder with."""
    wide = Image.new("RGB", (96, 64))
    shapes = {tuple(_processed(images, image).shape) for image in (wide, wide.transpose(Image.Transpose.ROTATE_90))}
    shape = shapes.pop()
    if shapes or len(shape) != 4 or shape[:2] != (1, 3):
        raise VPPError(
            f"the {type(images).__name__} gives the vision encoder tiles, or images at their own size, and the axes "
            "would be resized with them: only hosts that see every image at one size can be baked."
        )
    return shape[2], shape[3]


def _processed(images: Any, image: Image.Image) -> Tensor:
    pixels: Tensor = torch.as_tensor(np.asarray(images(image, return_tensors="pt")["pixel_values"]))
    return pixels


@torch.no_grad()
def _compare(prompt: GlobalVPP, images: Any, axes: Axes, target: Path, photos: Sequence[Image.Image]) -> Baked:
    """Compare with the overlay on the host's own pixels; raises VPPError beyond 1/255."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in normalisation(images))
    overlay, largest, clipped = prompt.overlay(), 0.0, 0
    for image in photos:
        fitted = fit(image, axes)
        alone = _processed(images, fitted)
        if ((_processed(images, image) - alone) * std).abs().mean() > RESIZED_ALIKE:
            raise VPPError(
                f"the {type(images).__name__} makes other pixels of an image than padding or stretching it to "
                f"{fitted.width} x {fitted.height} does, so the axes would lie elsewhere: this host cannot be baked."
            )
        wanted = overlay.blend(alone)[0] * std + mean
        made = _processed(images, apply_axes(image, axes))[0] * std + mean
        inside = (wanted >= 0) & (wanted <= 1)
        clipped += int((~inside).sum())
        largest = max(largest, float(((wanted - made).abs() * inside).max()))
    if largest > 1 / 255:
        raise VPPError(
            f"the baked axes are {255 * largest:.1f}/255 from the prompt's, and at most 1/255 is expected: the "
            f"{type(images).__name__} changes photos that are {axes.shade.shape[1]} x {axes.shade.shape[0]} already."
        )
    low, high = axes.add, 1 - axes.shade + axes.add
    return Baked(
        folder=target,
        size_hw=(axes.shade.shape[0], axes.shade.shape[1]),
        largest_difference=largest,
        clipped=clipped,
        clippable=int(((low < -ROUNDING) | (high > 1 + ROUNDING)).sum()),
        images=len(photos),
    )


def _write(folder: Path, axes: Axes, baked: Baked) -> None:
    np.savez_compressed(folder / "axes.npz", add=axes.add, shade=axes.shade)
    settings = {"background": axes.background, "resample": axes.resample, "margins": axes.margins}
    (folder / "axes.json").write_text(json.dumps(settings, indent=2) + "\n")
    own = np.concatenate([axes.add / axes.shade.clip(min=1e-6), axes.shade > 0], axis=2)
    Image.fromarray((own.clip(0, 1) * 255).round().astype(np.uint8)).save(folder / "axes.png")
    shutil.copyfile(Path(__file__).with_name("apply_axes.py"), folder / "apply_axes.py")
    (folder / "README.md").write_text(
        readme(
            baked.size_hw,
            padded=axes.background is not None,
            difference=baked.largest_difference,
            images=baked.images,
            clipped=baked.clipped,
            clippable=baked.clippable,
        )
    )
