"""Which part of its image each input of a vision encoder shows, by the host's own processor.

Processors cut, pad and shrink images in as many ways as there are families, and few say how. So an image whose
colours are its own coordinates goes through the processor, and the colours that come out show where each input lies.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vpp_plugins.attach import PER_SIDE
from vpp_plugins.boxes import Frame
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import Backbone
from vpp_plugins.plugins.layouts import Patches
from vpp_plugins.processor.checks import image_marker
from vpp_plugins.prompts import Overlay, Window

NOWHERE: Window = (2.0, 2.0, 3.0, 3.0)
"""The window of an input that is padding throughout."""

EDGE = 3
"""Resizing bends the coordinates near an image's edge: pixels of the image, and of the input, that are left out."""

OBLONG_HW = (64, 96)
"""Size of an image that shows whether a processor crops."""

TOLERANCE = 0.03
"""How far, of the frame's side, an input may seem to reach beyond the frame, or fall short: resizing blurs edges."""

KEPT = 1000
"""Results that are kept for each processor."""

InputWindows = tuple[tuple[Window, ...], ...]
"""The windows of one image's inputs, in each of the host's image arguments."""

_KNOWN: WeakKeyDictionary[Any, dict[tuple[Any, ...], InputWindows]] = WeakKeyDictionary()
"""What each processor made, by size and settings."""


def tile_boxes(
    processor: Any, sizes_hw: Sequence[tuple[int, int]], backbone: Backbone, **settings: Any
) -> Int[Tensor, "inputs 4"]:
    """Return (left, top, right, bottom) of every encoder input, in millionths of the frame that carries the axes.

    The images have the given heights and widths, in reading order; `settings` are the arguments of the processor's
    call that concern images. Inputs come in the order in which the encoder gets them, without padding tiles; where a
    host has several image arguments, all of the first come before all of the second. (0, 0, 1000000, 1000000) is the
    whole frame, and what lies beyond it is padding.

    One extra pass of the processor for each new size; results are kept. Raises VPPError where the processor cannot take
    such an image.
    """
    known = _KNOWN.setdefault(processor, {})
    setting = (_settings(processor.image_processor), backbone.pixel_layout, backbone.frame, repr(settings))
    if len(known) > KEPT:
        known.clear()
    each = []
    for size_hw in sizes_hw:
        windows = known.get((size_hw, *setting))
        if windows is None:
            windows = known[size_hw, *setting] = _find_windows(processor, size_hw, backbone, settings)
        each.append(windows)  # not looked up again: another thread may clear what is known
    return to_tile_boxes([window for windows in zip(*each, strict=True) for image in windows for window in image])


def _settings(image_processor: Any) -> str:
    """Return an image processor's settings in words; `to_json_string` fails while a method of it is replaced."""
    return repr({name: value for name, value in vars(image_processor).items() if not callable(value)})


def check_whole(processor: Any, sizes_hw: Sequence[tuple[int, int]], backbone: Backbone, **settings: Any) -> None:
    """Raise VPPError where the encoder would not see the frame of the boxes, for hosts that see it in one input.

    The arguments are those of `tile_boxes`. No extra pass for new sizes where an oblong image of any size is shown
    whole.
    """

    def off(size_hw: tuple[int, int]) -> float:
        try:
            shown = tile_boxes(processor, [size_hw], backbone, **settings)
        except VPPError:  # Pillow pads in colours that an image of floats cannot hold: what pads cuts nothing away
            return 0.0
        return max((shown / PER_SIDE - torch.tensor([0, 0, 1, 1])).abs().flatten().tolist(), default=0.0)

    if off(OBLONG_HW) > TOLERANCE and any(off(size_hw) > TOLERANCE for size_hw in sizes_hw):
        raise VPPError(
            f"with these settings {type(processor.image_processor).__name__} cuts parts of the images away, or adds to "
            "them, and boxes would be measured in another frame: leave do_pad on, and size equal to crop_size."
        )


def to_tile_boxes(windows: Sequence[Window]) -> Int[Tensor, "inputs 4"]:
    """Return windows as `vpp_tile_boxes`: whole numbers, which `inputs.to(torch.bfloat16)` leaves as they are."""
    return torch.tensor(windows, dtype=torch.float64).reshape(-1, 4).mul(PER_SIDE).round().long()


def _find_windows(
    processor: Any, size_hw: tuple[int, int], backbone: Backbone, settings: Mapping[str, Any]
) -> InputWindows:
    inputs = _process(processor, size_hw, backbone, settings)
    images = [_images(backbone, inputs, name) for name in backbone.image_arguments]
    return tuple(
        tuple(_in_frame(_window(image, size_hw), size_hw, backbone.frame) for image in argument) for argument in images
    )


def _process(
    processor: Any, size_hw: tuple[int, int], backbone: Backbone, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Send coordinates through the processor: red is x, green is y, both from 0 to 1, and blue is 1."""
    from transformers.image_processing_backends import PilBackend

    height, width = size_hw
    coordinates = torch.ones(3, height, width)
    coordinates[0] = (torch.arange(width) + 0.5) / width
    coordinates[1] = ((torch.arange(height) + 0.5) / height)[:, None]
    if isinstance(processor.image_processor, PilBackend):
        coordinates = (coordinates + 0.5 / 255).clamp(max=1)  # PIL holds 8 bits, and rounds down
    plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    marker = image_marker(processor, backbone.image_token)
    try:
        return processor(images=[coordinates], text=[marker], **{**settings, **plain})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise VPPError(
            f"{type(processor).__name__} cannot tell what its tiles show, because it fails on an image of floats "
            f"({error}): pass vpp_tile_boxes of your own, or leave the global prompt out, VPPConfig(global_vpp=None)."
        ) from error


def _images(backbone: Backbone, inputs: Mapping[str, Any], name: str) -> list[Float[Tensor, "3 height width"]]:
    """Return every input as an image: what the layout would lay the axes over."""
    if inputs.get(name) is None:
        return []
    nothing = torch.zeros(3, 1, 1)
    seen = _Seen(nothing, nothing[0], 1.0, "kept", "bilinear", shrink=False)
    seen.images = []
    backbone.pixel_layout(torch.as_tensor(inputs[name]), seen, None, encoder_arguments(inputs))
    layout = backbone.pixel_layout
    return seen.images[:: layout.frames if isinstance(layout, Patches) else 1]  # Qwen-VL repeats an image in time


def encoder_arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a processor's inputs under the vision encoder's names too, which lack `image_`: `image_grid_thw`, ..."""
    return {**inputs, **{name.removeprefix("image_"): value for name, value in inputs.items()}}


class _Seen(Overlay):
    """An overlay that lays nothing over the images that a layout gives it, and remembers them."""

    images: list[Float[Tensor, "3 height width"]]

    def blend(
        self, pixels: Float[Tensor, "images 3 height width"], windows: Sequence[Window] | None = None
    ) -> Float[Tensor, "images 3 height width"]:
        self.images.extend(pixels)
        return pixels


def _window(image: Float[Tensor, "3 height width"], size_hw: tuple[int, int]) -> Window:
    """Read what an input shows of the image off the coordinates in it."""
    x, y, one = image.double()
    content = ((one - 1).abs() < 1e-3) & (x > 0) & (x < 1) & (y > 0) & (y < 1)
    if not content.any():
        return NOWHERE
    left, right = _reach((x * content).sum(0) / content.sum(0).clamp(min=1), content.any(0), size_hw[1])
    top, bottom = _reach((y * content).sum(1) / content.sum(1).clamp(min=1), content.any(1), size_hw[0])
    return left, top, right, bottom


def _reach(coordinates: Float[Tensor, " length"], content: Bool[Tensor, " length"], source: int) -> tuple[float, float]:
    """Fit a line to the coordinates along one side of an input and return its values at both ends."""
    length, places = len(coordinates), torch.nonzero(content)[:, 0].numpy()
    values = coordinates.numpy()[places]
    if len(places) == 1:  # a sliver at the image's edge
        step = 2 * min(values[0], 1 - values[0])
    else:
        inner = (values * source > EDGE) & ((1 - values) * source > EDGE)
        inner &= (places >= places[0] + EDGE) & (places <= places[-1] - EDGE)
        if inner.sum() > 1:
            places, values = places[inner], values[inner]
        step = np.polyfit(places, values, 1)[0]
    start = values.mean() - step * (places.mean() + 0.5)
    return round(float(start), 6), round(float(start + step * length), 6)


def _in_frame(window: Window, size_hw: tuple[int, int], frame: Frame) -> Window:
    """Bring a window from units of the image to those of the frame that carries the axes."""
    if frame == "image":
        return window
    (height, width), side = size_hw, max(size_hw)
    left, top, right, bottom = window
    x, y = (side - width) / 2, (side - height) / 2
    return (
        (left * width + x) / side,
        (top * height + y) / side,
        (right * width + x) / side,
        (bottom * height + y) / side,
    )
