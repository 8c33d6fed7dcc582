"""Global VPP: learnable axes blended into the encoder's pixels (paper, section III-B)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from vpp_plugins.config import AxisStyle
from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.axes import band_mask, draw_axes
from vpp_plugins.prompts.resample import WHOLE, Window, resample, resample_each

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RGB = tuple[float, float, float]


class Overlay(NamedTuple):
    """A prompt made ready to be laid over pixels: what GlobalVPP's parameters amount to for one forward.

    `prompt` and `mask` are P and M of the paper, P in the units of the pixels that it will be blended with.
    """

    prompt: Float[Tensor, "3 size size"]
    mask: Float[Tensor, "size size"]
    alpha: float
    interior: Literal["kept", "scaled"]
    resampling: Literal["bilinear", "nearest"]
    shrink: bool

    def blend(
        self, pixels: Float[Tensor, "images 3 height width"], windows: Sequence[Window] | None = None
    ) -> Float[Tensor, "images 3 height width"]:
        """Return the pixels with the axes on them; each window says which part of the axes' square its input shows.

        kept:   x' = x - (1 - alpha) M (x - P)
        scaled: x' = alpha x + (1 - alpha) M P, as VPP-LLaVA's code has it.
        Pixels outside the square, that is padding, stay as they are.
        """
        if windows is not None and len(windows) != len(pixels):
            raise VPPError(f"one window per image is expected, but {len(windows)} came for {len(pixels)} images.")
        if self.shrink:
            return self._surround(pixels, windows)
        size_hw = (pixels.shape[-2], pixels.shape[-1])
        if windows is None or all(window == WHOLE for window in windows):
            return self.mix(pixels, self.render(size_hw))
        rendered = {window: self.render(size_hw, window) for window in set(windows)}
        return self.mix(pixels, torch.stack([rendered[window] for window in windows]))

    def blend_each(
        self, pixels: Float[Tensor, "images 3 height width"], windows: Float[Tensor, "images 4"]
    ) -> Float[Tensor, "images 3 height width"]:
        """Blend as `blend` does, with windows that were computed: they stay on their device. For edge styles only."""
        return self.mix(pixels, resample_each(self._layers(), (pixels.shape[-2], pixels.shape[-1]), windows))

    def render(self, size_hw: tuple[int, int], window: Window = WHOLE) -> Float[Tensor, "5 height width"]:
        """Return M P (three channels), M, and the cover of the square, at the given size."""
        if self.resampling == "bilinear":
            return resample(self._layers(), size_hw, window)
        if window != WHOLE:
            raise VPPError("resample='nearest' lays the axes on whole images only: use 'bilinear' for tiles.")
        # fp32 nearest indices of F.interpolate, prompt and mask apart, as the published model was trained
        prompt, mask, cover = (
            F.interpolate(rearrange(part, "(one c) h w -> one c h w", one=1), size_hw)[0]
            for part in (self.prompt, self.mask[None], torch.ones_like(self.mask)[None])
        )
        return torch.cat([prompt * mask, mask, cover])

    def _layers(self) -> Float[Tensor, "5 size size"]:
        return torch.cat([self.prompt * self.mask, self.mask[None], torch.ones_like(self.mask)[None]])

    def mix(
        self, pixels: Float[Tensor, "images 3 height width"], rendered: Float[Tensor, "*images 5 height width"]
    ) -> Float[Tensor, "images 3 height width"]:
        """Blend with what `render` returned, which may serve for many forwards. Not for the external padding."""
        masked, mask, cover = rendered.to(pixels.device).split([3, 1, 1], dim=-3)
        share = cover if self.interior == "scaled" else mask
        return (pixels - (1 - self.alpha) * (share * pixels - masked)).to(pixels.dtype)

    def _surround(
        self, pixels: Float[Tensor, "images 3 height width"], windows: Sequence[Window] | None
    ) -> Float[Tensor, "images 3 height width"]:
        """Shrink the image into the band's inside, with opaque axes around it (the paper's external padding)."""
        if windows is not None and any(window != WHOLE for window in windows):
            raise VPPError("style='padding' shrinks whole images only: choose an edge style for tiles.")
        height, width = pixels.shape[-2:]
        rim = torch.cat([self.prompt * self.mask, self.mask[None]])
        outside = resample(rim, (height, width)).to(pixels.device)
        rows, columns = (self.mask[:, self.mask.shape[0] // 2], self.mask[self.mask.shape[0] // 2])
        top = round(height * float(rows.argmin()) / len(rows))
        left = round(width * float(columns.argmin()) / len(columns))
        inner = F.interpolate(
            pixels.float(), (height - 2 * top, width - 2 * left), mode="bilinear", antialias=True, align_corners=False
        )
        shrunk = F.pad(inner, (left, left, top, top))
        hole = F.pad(torch.ones_like(inner[:1, :1]), (left, left, top, top))
        return (hole * shrunk + (1 - hole) * outside[:3] / outside[3:4].clamp(min=1e-6)).to(pixels.dtype)


class GlobalVPP(nn.Module):
    """A learnable axis image P and its fixed band M.

    P lives in the host's normalised pixel units, like the pixels that `forward` takes. Its gradient is exactly zero
    outside the band.
    """

    prompt: nn.Parameter
    mask: Tensor

    def __init__(
        self,
        size: int = 336,
        *,
        alpha: float = 0.95,
        border: int = 30,
        style: AxisStyle = "edge-0.1",
        unit: Literal["0-1", "0-1000"] = "0-1",
        interior: Literal["kept", "scaled"] = "kept",
        resample: Literal["bilinear", "nearest"] = "bilinear",
        font_size: int = 10,
        image_mean: RGB = CLIP_MEAN,
        image_std: RGB = CLIP_STD,
    ) -> None:
        super().__init__()
        self.alpha, self.style, self.interior, self.resample = alpha, style, interior, resample
        self.image_mean, self.image_std = image_mean, image_std
        axes = draw_axes(size, style=style, unit=unit, font_size=font_size, border=border)
        self.prompt = nn.Parameter(_normalise(axes, image_mean, image_std))
        self.register_buffer("mask", band_mask(size, border, style), persistent=False)

    def forward(
        self, pixels: Float[Tensor, "images 3 height width"], windows: Sequence[Window] | None = None
    ) -> Float[Tensor, "images 3 height width"]:
        """Return normalised pixels of any size with the axes blended in; see Overlay.blend."""
        return self.overlay().blend(pixels, windows)

    def overlay(self) -> Overlay:
        """Return the prompt as data, to be blended with the host's pixels later in the same forward."""
        # times one: a plain tensor also where a wrapper (FSDP, offload) takes the parameter away again
        return Overlay(
            self.prompt * 1, self.mask, self.alpha, self.interior, self.resample, shrink=self.style == "padding"
        )

    def overlay_for(self, mean: RGB, std: RGB) -> Overlay:
        """Return the prompt in the units of pixels that were normalised with another mean and standard deviation."""
        ours_mean, ours_std, theirs_mean, theirs_std = (
            self.prompt.new_tensor(value)[:, None, None] for value in (self.image_mean, self.image_std, mean, std)
        )
        prompt = (self.prompt * ours_std + ours_mean - theirs_mean) / theirs_std
        return Overlay(prompt, self.mask, self.alpha, self.interior, self.resample, shrink=self.style == "padding")

    @torch.no_grad()
    def renormalise_(self, mean: RGB, std: RGB) -> None:
        """Rewrite P in place for pixels normalised with `mean` and `std`; the image that it shows stays the same."""
        self.prompt.copy_(self.overlay_for(mean, std).prompt)
        self.image_mean, self.image_std = mean, std


def _normalise(image: Image.Image, mean: RGB, std: RGB) -> Float[Tensor, "3 size size"]:
    unit = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return rearrange((unit - torch.tensor(mean)) / torch.tensor(std), "h w c -> c h w").contiguous()
