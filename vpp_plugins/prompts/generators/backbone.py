"""DETR's convolutional backbone: any timm feature extractor, its batch norms frozen."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.prompts.generators.cpu import fold_resnet
from vpp_plugins.prompts.generators.frozen_norm import freeze_batch_norms, revive_zero_norms
from vpp_plugins.prompts.inference_cache import InferenceCache


class TimmBackbone(nn.Module):
    """The last feature map of a timm model at random weights, its batch norms frozen.

    `name` is any timm model that supports `features_only`, `options` go to its constructor. The depth of the map is in
    `channels`. Raises VPPError when timm knows no such model.

    With `fold`, which may be changed at any time, a ResNet on the CPU without gradients runs as its folded twin: equal
    within rounding, and quicker, at the price of copies of the convolutions' weights (see `cpu`).
    """

    def __init__(self, name: str, *, fold: bool = True, **options: Any) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise VPPError(f"timm has no model '{name}' to use as backbone.{nearest(name, timm.list_models())}")
        body: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=(-1,), **options)
        revive_zero_norms(body)
        freeze_batch_norms(body)
        self.body = body
        self.channels: int = body.feature_info.channels()[-1]
        self.fold = fold
        self._twin: InferenceCache[Callable[[Tensor], Tensor] | None] = InferenceCache()

    def forward(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images channels rows columns"]:
        folded = self._folded(pixel_values)
        if folded is not None:
            return folded(pixel_values)
        features = torch.cat([self.body(images)[-1] for images in _apart(pixel_values)])
        if features.shape[1] != self.channels:  # timm's Swin and its like put them last
            features = features.movedim(-1, 1)
        return features

    def _folded(self, pixel_values: Tensor) -> Callable[[Tensor], Tensor] | None:
        if not self.fold or self.training:
            self._twin.clear()
            return None
        if type(pixel_values) is not Tensor or pixel_values.dtype != next(self.body.parameters()).dtype:
            return None
        return self._twin.get(self.body, None, lambda: fold_resnet(self.body))


def _apart(pixel_values: Float[Tensor, "images 3 height width"]) -> Sequence[Tensor]:
    """Return the images one by one on a CPU without gradients: the maps of one fit its caches, a batch's do not."""
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return [pixel_values] if whole or not pixel_values.is_cpu else pixel_values.split(1)
