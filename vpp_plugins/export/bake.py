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

from vpp_plugins.attach import active_vpp, attach_vpp, detach_vpp, host_state, unwrap, vpp_disabled
from vpp_plugins.boxes import Box, box_iou
from vpp_plugins.errors import VPPError
from vpp_plugins.export.apply_axes import Axes, apply_axes, fit, load_axes
from vpp_plugins.files import whole_folder
from vpp_plugins.ground import Grounder
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


@dataclass(frozen=True, kw_only=True)
class BakedScores:
    """Mean IoU, and share above 0.5, with the prompt attached and with it baked, over the same questions."""

    questions: int
    iou_attached: float
    iou_baked: float
    acc_50_attached: float
    acc_50_baked: float
    same_answers: int
    """Answers that are the same, letter by letter."""


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


def score_baked(
    model: nn.Module,
    processor: VPPProcessor,
    folder: str | Path,
    questions: Sequence[tuple[Image.Image, str, Box]],
    *,
    batch_size: int = 8,
) -> BakedScores:
    """Ask the same questions, an image, an expression and its true box, with the prompt attached and with it baked."""
    axes, grounder = load_axes(folder), Grounder(model, processor)
    images = [image for image, _, _ in questions]
    prompts = [grounder.codec.prompt(expression) for _, expression, _ in questions]
    attached, baked, metas = [], [], []
    for start in range(0, len(questions), batch_size):
        batch = slice(start, start + batch_size)
        answers = grounder.ask(images[batch], prompts[batch])
        attached += [text for text, _ in answers]
        metas += [meta for _, meta in answers]
        with vpp_disabled(model):
            laid = [apply_axes(image, axes) for image in images[batch]]
            baked += [text for text, _ in grounder.ask(laid, prompts[batch])]

    def overlaps(answers: Sequence[str]) -> list[float]:
        read = [grounder.codec.decode(text, meta).boxes_xyxy_px for text, meta in zip(answers, metas, strict=True)]
        return [box_iou(boxes[0], true) if boxes else 0.0 for boxes, (_, _, true) in zip(read, questions, strict=True)]

    with_float, with_baked = np.array(overlaps(attached)), np.array(overlaps(baked))
    return BakedScores(
        questions=len(questions),
        iou_attached=float(with_float.mean()),
        iou_baked=float(with_baked.mean()),
        acc_50_attached=float((with_float >= 0.5).mean()),
        acc_50_baked=float((with_baked >= 0.5).mean()),
        same_answers=sum(a == b for a, b in zip(attached, baked, strict=True)),
    )


@torch.no_grad()
def _axes(prompt: GlobalVPP, images: Any, size_hw: tuple[int, int], *, square: bool) -> Axes:
    """Return the prompt in raw colours: the gain and the offset of every pixel, read off the overlay itself.

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
    return torch.as_tensor(np.asarray(images(image, return_tensors="pt")["pixel_values"]))


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
    (folder / "README.md").write_text(_readme(baked, padded=axes.background is not None))


def _readme(baked: Baked, *, padded: bool) -> str:
    height, width = baked.size_hw
    return _README.format(
        width=width,
        height=height,
        shaped="padded to a square and resized" if padded else "stretched",
        difference=f"{255 * baked.largest_difference:.2f}",
        images=baked.images,
        clipped=f"{baked.clipped:,}",
        values=f"{3 * width * height * baked.images:,}",
        clippable=f"{baked.clippable:,}",
    )


_README = """# Axes for the model's images

Made by `vpp bake` from a trained global prompt. The step needs numpy and Pillow, and no other part of the library.

    from apply_axes import apply_axes, load_axes

    axes = load_axes("this folder")
    image = apply_axes(Image.open("photo.jpg"), axes)

Give `image` instead of the photograph to whatever serves the bare model, the one without VPP:

- vLLM: `llm.generate({{"prompt": prompt, "multi_modal_data": {{"image": image}}}})`.
- SGLang, llama.cpp's llama-server, and vLLM's server take images in chat messages: save `image` as PNG and send
  `{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,..."}}}}`.

`image` is {width} x {height} pixels: the photograph is {shaped} as the model's image processor would do it, which
then finds nothing left to resize. Do not resize it or save it as JPEG. Ask with the prompt that the model was trained
with, and read the answer's boxes as before, with the size of the photograph, not of `image`.

axes.npz holds `add` and `shade`: the result is image * (1 - shade) + add, colours from 0 to 1, rounded to 8 bits.
axes.png shows the axes to the eye and is not read.

Compared with the prompt in floating point on {images} images: at most {difference}/255 apart where nothing is
clipped; clipped were {clipped} of {values} colour values. With any image, {clippable} of an image's values could be.
"""
