"""LLaVA-NeXT, LLaVA-NeXT-Video's images, and LLaVA-OneVision: a whole view and tiles of every image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_adapters.llava import normalisation_of
from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, hookimpl
from vpp_plugins.plugins import Backbone, PixelLayout
from vpp_plugins.plugins.layouts import planes
from vpp_plugins.prompts import Overlay, Window


@hookimpl
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Claim LLaVA-NeXT and LLaVA-OneVision: boxes 0-1 on the padded square, pixels as a whole view and tiles."""
    from transformers import (
        LlavaNextForConditionalGeneration,
        LlavaNextVideoForConditionalGeneration,
        LlavaOnevisionForConditionalGeneration,
    )

    if isinstance(model, LlavaOnevisionForConditionalGeneration):
        return _describe(model.config, OneVisionViews.of(model.config))
    if isinstance(model, LlavaNextForConditionalGeneration | LlavaNextVideoForConditionalGeneration):
        return _describe(model.config, planes)
    return None


@dataclass(frozen=True)
class OneVisionViews:
    """Planes of LLaVA-OneVision, which encodes images that share a text by their whole views, without their tiles."""

    pinpoints: tuple[tuple[int, int], ...]
    """Heights and widths that an image may be brought to before it is cut."""
    side: int
    """Side of a tile, in pixels."""

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read the sizes off the host's configuration."""
        pinpoints = tuple((height, width) for height, width in config.image_grid_pinpoints)
        return cls(pinpoints, config.vision_config.image_size)

    def __call__(
        self,
        pixels: Float[Tensor, "*inputs 3 height width"],
        overlay: Overlay,
        windows: Sequence[Window] | None,
        call: Mapping[str, Any],
    ) -> Float[Tensor, "*inputs 3 height width"]:
        """Lay the axes over the views; `windows` are those of whole views and tiles alike."""
        if windows is not None and call.get("batch_num_images") is not None:
            windows = self._encoded(windows, call["image_sizes"], call["batch_num_images"])
        return planes(pixels, overlay, windows, call)

    def _encoded(self, windows: Sequence[Window], sizes_hw: Tensor, images_per_text: Tensor) -> list[Window]:
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        alone = [count == 1 for count in torch.as_tensor(images_per_text).tolist() for _ in range(count)]
        kept, rest = [], list(windows)
        for size_hw, is_alone in zip(torch.as_tensor(sizes_hw).tolist(), alone, strict=True):
            views = image_size_to_num_patches(size_hw, [list(size) for size in self.pinpoints], self.side)
            kept += rest[: views if is_alone else 1]
            rest = rest[views:]
        return kept


def _describe(config: Any, layout: PixelLayout) -> Backbone:
    mean, std = normalisation_of(config.vision_config)
    return Backbone(
        adapter="llava_next",
        hidden_size=config.text_config.hidden_size,
        vision_encoders=("model.vision_tower",),
        projectors=("model.multi_modal_projector",),
        box_format="llava-next",
        frame="square",
        pixel_layout=layout,
        tiled=True,
        image_mean=mean,
        image_std=std,
        defaults=VPPConfig(
            global_vpp=GlobalVPPConfig(unit="0-1"),
            # boxes are measured on the padded square: the detector's positions must run over it, and its axes be seen
            local_vpp=LocalVPPConfig(mask_padding=False),
        ),
    )
