"""Every adapter lays the axes where they would be had they been painted on the image before the host's processor.

The prompt is a ramp of colours over the frame of the family's boxes: a mistake of frame, tile, patch order, channel or
normalisation moves it.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.families import FAMILIES, attached_family, encoder_pixels
from vpp_plugins import GlobalVPPConfig, VPPConfig, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.boxes import codec
from vpp_plugins.boxes.frames import padded_square
from vpp_plugins.plugins.registry import describe
from vpp_plugins.prompts.resample import WHOLE

SIDE = 64
RAMP = VPPConfig(global_vpp=GlobalVPPConfig(size=SIDE, border=20, alpha=0.0), local_vpp=None)
every_family = pytest.mark.parametrize("name", list(FAMILIES))
every_shape = pytest.mark.parametrize("size", [(192, 120), (100, 190), (128, 128)], ids=["wide", "high", "square"])


@every_family
@every_shape
def test_laid_axes_are_painted_axes(name: str, size: tuple[int, int]) -> None:
    model, processor = with_ramp(name)
    grey, question = Image.new("RGB", size, (110, 120, 130)), text(processor)
    inputs = processor(images=grey, text=question, return_tensors="pt")

    laid = encoder_pixels(model, inputs)
    with vpp_disabled(model):
        plain, expected, black, white = (
            encoder_pixels(model, processor(images=each, text=question, return_tensors="pt"))
            for each in (grey, painted(model, grey), Image.new("RGB", size), Image.new("RGB", size, (255, 255, 255)))
        )

    content = (white - black).abs() > 0.9 * (white - black).abs().max()  # what the image covers, without padding
    error, effect = (laid - expected).abs()[content], (plain - expected).abs()[content]
    assert effect.mean() > 0.25
    assert error.median() < 0.02  # 8-bit rounding
    assert error.mean() < 0.05  # and what resampling does along the band's sharp edge


@every_family
def test_the_image_inside_the_band_stays_as_it_is(name: str) -> None:
    model, processor = with_ramp(name)
    inputs = processor(images=Image.new("RGB", (128, 128), (110, 120, 130)), text=text(processor), return_tensors="pt")

    laid = encoder_pixels(model, inputs)
    with vpp_disabled(model):
        plain = encoder_pixels(model, inputs)

    changed = (laid != plain).float().mean()
    assert 0.5 < changed < 1


@every_family
def test_frame_and_ticks_are_those_of_the_boxes(name: str) -> None:
    backbone = describe(FAMILIES[name].model())

    boxes = codec(backbone.box_format)

    assert backbone.frame == boxes.frame
    assert backbone.defaults.global_vpp.unit == {"pixels": "0-1000"}.get(boxes.unit, boxes.unit)


def with_ramp(name: str) -> tuple[Any, Any]:
    """Return an attached host, whose prompt is red towards the right, green downwards, and its processor."""
    model, processor = attached_family(name, RAMP)
    axes = active_vpp(model).global_vpp
    ramp = (torch.arange(SIDE) + 0.5) / SIDE
    unit = torch.stack([ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE), 1 - ramp.expand(SIDE, SIDE)])
    with torch.no_grad():
        axes.prompt.copy_(normalised(model, unit))
    return model, processor


def painted(model: Any, image: Image.Image) -> Image.Image:
    """Return the image with the axes painted on it, in the frame of the family's boxes."""
    vpp, (width, height) = active_vpp(model), image.size
    if codec(host_state(model).backbone.box_format).frame == "square":
        side, left, top = padded_square((height, width))
        window = (left / side, top / side, (left + width) / side, (top + height) / side)
    else:
        window = WHOLE
    pixels = normalised(model, torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    with torch.no_grad():
        laid = vpp.global_vpp.overlay().blend(pixels[None], [window])[0]
    mean, std = colours(model)
    return Image.fromarray((laid * std + mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def normalised(model: Any, unit: Tensor) -> Tensor:
    mean, std = colours(model)
    return (unit - mean) / std


def colours(model: Any) -> tuple[Tensor, Tensor]:
    axes = active_vpp(model).global_vpp
    return torch.tensor(axes.image_mean)[:, None, None], torch.tensor(axes.image_std)[:, None, None]


def text(processor: Any) -> str:
    content = [{"type": "image"}, {"type": "text", "text": "where is the cup"}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
