"""Images of what the prompts put in, and of what they see."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vpp_plugins.boxes import padded_square
from vpp_plugins.errors import VPPError
from vpp_plugins.images import draw_boxes, letterbox
from vpp_plugins.prompts.generators.heads import DetectionHeads
from vpp_plugins.prompts.global_vpp import GlobalVPP
from vpp_plugins.prompts.vpp import VPP


def draw_overlay(prompt: GlobalVPP, image: Image.Image, *, gain: float = 1.0) -> Image.Image:
    """Return the padded square of the image as the vision encoder sees it, at the prompt's size.

    `gain` multiplies what the prompt changed, so that a blend of a few per cent becomes visible; 1 is the truth.
    """
    side = prompt.prompt.shape[-1]
    mean, std = (np.array(value, dtype=np.float32) for value in (prompt.image_mean, prompt.image_std))
    square = _pad_to_square(image, tuple(int(channel * 255) for channel in mean)).resize((side, side))
    pixels = torch.from_numpy((np.array(square, dtype=np.float32) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        overlaid = prompt(pixels.to(prompt.prompt)).float().cpu()
    shown = (pixels + gain * (overlaid - pixels))[0].permute(1, 2, 0).numpy() * std + mean
    return _to_image(shown)


def draw_sensitivity(vpp: VPP, image: Image.Image) -> Image.Image:
    """Return the image at the detector's size, bright where the local prompt's tokens depend on it most.

    Measured by the gradient of the tokens' squared length with respect to the pixels, averaged over 16 x 16 of them.
    Raises VPPError where there is no local prompt.
    """
    if vpp.config.local_vpp is None:
        raise VPPError("there is no local prompt whose tokens could depend on the image.")
    pixels = letterbox(image.convert("RGB"), vpp.config.local_vpp.image_size)[None]
    pixels = pixels.to(next(vpp.parameters())).requires_grad_()
    with torch.enable_grad():
        features = vpp(pixels).features
        assert features is not None  # there are pixels and a local prompt
        (gradient,) = torch.autograd.grad(features.square().sum(), pixels)
    cells = F.avg_pool2d(gradient.float().abs().sum(1, keepdim=True), 16)
    light = F.interpolate(cells, pixels.shape[-2:], mode="bilinear")[0, 0]
    rows, columns = torch.nonzero((pixels[0] != 0).any(0)).unbind(1)
    light = light[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].cpu()
    shown = np.array(image.convert("RGB").resize((light.shape[1], light.shape[0])), dtype=np.float32)
    shown *= 0.15 + 0.85 * (light / light.max().clamp(min=1e-30)).numpy()[..., None]
    return Image.fromarray(shown.round().astype(np.uint8))


def draw_queries(
    vpp: VPP, heads: DetectionHeads, names: Sequence[str], image: Image.Image, *, at_least: float = 0.3
) -> Image.Image:
    """Return the image with what the local prompt's queries see: the box and noun of each that is sure enough.

    `heads` are a detector's, trained with these queries, and `names` its classes; `at_least` is a probability. The
    detector's square must be the image padded, as `images.letterbox` makes it.
    """
    if vpp.local_vpp is None or vpp.config.local_vpp is None:
        raise VPPError("there is no local prompt whose queries could be drawn.")
    pixels = letterbox(image.convert("RGB"), vpp.config.local_vpp.image_size)[None].to(next(vpp.parameters()))
    mask = (pixels != 0).any(dim=1) if vpp.mask_padding else None
    with torch.no_grad():
        seen = heads(vpp.local_vpp.generator(vpp.detector_view(pixels), mask))
    chances, classes = seen.logits[0].softmax(-1)[:, :-1].max(-1)
    side, left, top = padded_square((image.height, image.width))
    boxes, labels = [], []
    for chance, number, (x, y, width, height) in zip(
        chances.tolist(), classes.tolist(), seen.boxes_cxcywh[0].tolist(), strict=True
    ):
        if chance >= at_least:
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            x1, y1, x2, y2 = (side * value for value in corners)
            boxes.append((x1 - left, y1 - top, x2 - left, y2 - top))
            labels.append(f"{names[number]} {chance:.0%}")
    return draw_boxes(image, boxes, labels=labels)


def draw_prompt(prompt: GlobalVPP) -> Image.Image:
    """Return the learnable axes themselves, as an image."""
    mean, std = (np.array(value, dtype=np.float32) for value in (prompt.image_mean, prompt.image_std))
    shown = prompt.prompt.detach().float().cpu().permute(1, 2, 0).numpy() * std + mean
    return _to_image(shown)


def _to_image(shown: np.ndarray) -> Image.Image:
    """Turn colours [height, width, 3] from 0 to 1 into an image; what lies beyond is cut."""
    return Image.fromarray((shown * 255).clip(0, 255).round().astype(np.uint8))


def _pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    side, left, top = padded_square((image.height, image.width))
    square = Image.new("RGB", (side, side), colour)
    square.paste(image.convert("RGB"), (left, top))
    return square
