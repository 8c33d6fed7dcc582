"""What each family's vision encoder gets of one photograph, with the axes over it: `python -m docs.pictures` calls it.

Image processors are transformers' own, layouts and windows the library's; the axes are drawn at a weight of a half,
where a model starts with a twentieth.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import transformers
from einops import rearrange
from PIL import Image
from torch import Tensor

from vpp_plugins import GlobalVPP
from vpp_plugins.attach.windows import to_windows
from vpp_plugins.plugins import Backbone, PixelLayout
from vpp_plugins.plugins.layouts import Patches, planes
from vpp_plugins.processor.tile_boxes import encoder_arguments, tile_boxes

GAP = 3
"""Pixels between patches that the language model gets as one token."""


@dataclass(eq=False)
class Family:
    """An image processor as a family's checkpoints have it, and what VPP knows of the family."""

    processor: str
    settings: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    layout: PixelLayout = planes
    frame: Literal["square", "image"] = "image"
    unit: Literal["0-1", "0-1000"] = "0-1000"
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.image_processor: Any = getattr(transformers, f"{self.processor}ImageProcessor")(**self.settings)

    def __call__(self, images: Any, text: Any = None, **settings: Any) -> Any:
        return self.image_processor(images, **{**self.options, **settings})


CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
FAMILIES = {
    "llava": Family("Llava", {**CLIP, "do_pad": True}, frame="square", unit="0-1", inputs=("the padded square",)),
    "llava-next": Family(
        "LlavaNext",
        {**CLIP, "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]]},
        frame="square",
        unit="0-1",
        inputs=("whole view", "tile 1", "tile 2", "tile 3", "tile 4"),
    ),
    "qwen-vl": Family("Qwen2VL", {}, layout=Patches("image_grid_thw", merge=2, frames=2), inputs=("patches",)),
    "internvl": Family(
        "GotOcr2",
        {"size": {"height": 448, "width": 448}},
        {"crop_to_patches": True, "min_patches": 1, "max_patches": 6},
        inputs=("tile 1", "tile 2", "tile 3", "tile 4", "tile 5", "tile 6"),
    ),
}


@torch.no_grad()
def encoder_inputs(family: Family, image: Image.Image) -> Iterator[tuple[Image.Image, str]]:
    """Yield what the vision encoder gets, each with its name."""
    about = Backbone(
        adapter="drawn",
        hidden_size=1,
        vision_encoders=(),
        box_format="llava",
        frame=family.frame,
        pixel_layout=family.layout,
        tiled=True,
        image_token="<image>",
    )
    processed = family(image, return_tensors="pt")
    mean, std = (tuple(getattr(family.image_processor, name)) for name in ("image_mean", "image_std"))
    axes = GlobalVPP(336, unit=family.unit, font_size=16, image_mean=mean, image_std=std).overlay()
    windows = to_windows(tile_boxes(family, [(image.height, image.width)], about))
    pixels = processed["pixel_values"]
    laid = family.layout(pixels, axes._replace(alpha=0.5), windows, encoder_arguments(processed))
    shown = _unpatched(laid, processed["image_grid_thw"][0]) if "image_grid_thw" in processed else laid.flatten(0, -4)
    names = [*family.inputs[: len(shown) - 1], "thumbnail"] if family.processor == "GotOcr2" else family.inputs
    for one, name in zip(shown, names, strict=False):
        colours = one.permute(1, 2, 0).numpy() * std + mean
        yield Image.fromarray((colours.clip(0, 1) * 255).round().astype(np.uint8)), name


def _unpatched(patches: Tensor, grid: Tensor) -> Tensor:
    """Return flattened patches as one image, with gaps between what becomes one token."""
    _, rows, columns = (grid // 2).tolist()
    order = "(rows columns y x) (c t h w) -> t c rows columns (y h) (x w)"
    first = rearrange(patches, order, rows=rows, columns=columns, y=2, x=2, c=3, t=2, h=14)[0]
    spaced = torch.nn.functional.pad(first, (0, GAP, 0, GAP))
    return rearrange(spaced, "c rows columns h w -> 1 c (rows h) (columns w)")
