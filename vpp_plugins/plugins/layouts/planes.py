"""Pixels as colour planes, `[..., 3, height, width]`: images, tiles, and images padded to a batch's largest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts import Overlay, Window


def planes(
    pixels: Float[Tensor, "*inputs 3 height width"],
    overlay: Overlay,
    windows: Sequence[Window] | None,
    call: Mapping[str, Any],
) -> Float[Tensor, "*inputs 3 height width"]:
    """One plane per colour, with any number of axes before: CLIP, SigLIP, InternViT and most others."""
    if pixels.ndim == 4:
        return overlay.blend(pixels, windows)
    return overlay.blend(pixels.flatten(end_dim=-4), windows).reshape(pixels.shape)


def tiles(
    pixels: Float[Tensor, "*inputs 3 height width"],
    overlay: Overlay,
    windows: Sequence[Window] | None,
    call: Mapping[str, Any],
) -> Float[Tensor, "*inputs 3 height width"]:
    """Planes among which some are padding, zero throughout: these stay zero, and `windows` has none for them."""
    flat = pixels.flatten(end_dim=-4)
    real = flat.flatten(1).any(1)
    return flat.masked_scatter(real[:, None, None, None], overlay.blend(flat[real], windows)).reshape(pixels.shape)


def blocks(
    pixels: Float[Tensor, "inputs frames height width 3"],
    overlay: Overlay,
    windows: Sequence[Window] | None,
    call: Mapping[str, Any],
) -> Float[Tensor, "inputs frames height width 3"]:
    """Small tiles with colours last, every frame the same: Inkling."""
    laid = overlay.blend(rearrange(pixels[:, 0], "n h w c -> n c h w"), windows)
    return repeat(laid, "n c h w -> n t h w c", t=pixels.shape[1])


@dataclass(frozen=True)
class Padded:
    """Planes padded, at the right and below, to the size of the batch's largest image."""

    sizes: str = "image_sizes"
    """The argument that tells where each image ends: its height and width in pixels, `[inputs, 2]`, or a mask
    `[..., height, width]`, true on images, that is false throughout for inputs that the encoder does not get. Without
    it nothing is padded."""

    def __call__(
        self,
        pixels: Float[Tensor, "*inputs 3 height width"],
        overlay: Overlay,
        windows: Sequence[Window] | None,
        call: Mapping[str, Any],
    ) -> Float[Tensor, "*inputs 3 height width"]:
        """Lay the axes over the images and leave the padding; windows are the images', without padding."""
        if call.get(self.sizes) is None:
            return planes(pixels, overlay, windows, call)
        sizes = self._sizes(call[self.sizes])
        padded, out = pixels.flatten(end_dim=-4), []
        for given, name in ((sizes, self.sizes), (windows, "vpp_tile_boxes")):
            if given is not None and len(given) != len(padded):
                raise VPPError(f"{name} has {len(given)} rows for {len(padded)} images: pass one for each.")
        for index, (height, width) in enumerate(sizes):  # nothing is written in place: autograd needs what was there
            one = padded[index : index + 1]
            window = None if windows is None else windows[index : index + 1]
            laid = overlay.blend(one[..., :height, :width], window)
            out.append(torch.cat([torch.cat([laid, one[..., :height, width:]], dim=3), one[..., height:, :]], dim=2))
        return torch.cat(out).reshape(pixels.shape)

    def _sizes(self, sizes: Any) -> list[tuple[int, int]]:
        given = torch.as_tensor(sizes)
        if given.ndim == 2:
            return [(height, width) for height, width in given.tolist()]
        masks: Bool[Tensor, "inputs height width"] = given.flatten(end_dim=-3).bool()
        lengths = torch.stack([masks.any(2).sum(1), masks.any(1).sum(1)], dim=1).tolist()
        return [(height, width) for height, width in lengths if height]
