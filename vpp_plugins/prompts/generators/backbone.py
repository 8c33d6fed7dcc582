"""DETR's convolutional backbone: any timm feature extractor, its batch norms frozen."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.prompts.inference_cache import InferenceCache


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose statistics, scale and shift never change: four buffers, no parameter. `after` follows it."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, after: nn.Module | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.after = nn.Identity() if after is None else after

    def forward(
        self, features: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images channels height width"]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        # One pass, and backward keeps no copy of the features. In their dtype, or autocast would go on in float32.
        scale, shift = (number.to(features.dtype).view(-1, 1, 1) for number in (scale, shift))
        normalised: Tensor = self.after(torch.addcmul(shift, features, scale))
        return normalised


class TimmBackbone(nn.Module):
    """The last feature map of a timm model at random weights, its batch norms frozen.

    `name` is any timm model that supports `features_only`, `options` go to its constructor. The depth of the map is in
    `channels`. Raises VPPError when timm knows no such model.

    With `fold`, which may be changed at any time, a ResNet on the CPU without gradients runs as its folded twin: equal
    within rounding, and quicker, at the price of copies of the convolutions' weights (see `folded`).
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
        from vpp_plugins.prompts.generators.cpu.folded import fold_resnet

        return self._twin.get(self.body, None, lambda: fold_resnet(self.body))


def _apart(pixel_values: Float[Tensor, "images 3 height width"]) -> Sequence[Tensor]:
    """Return the images one by one on a CPU without gradients: the maps of one fit its caches, a batch's do not."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or traced
    return [pixel_values] if whole or not pixel_values.is_cpu else pixel_values.split(1)


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside the module by a FrozenBatchNorm2d of the same numbers and activation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            module.set_submodule(name, _frozen(child))
        else:
            freeze_batch_norms(child)


def revive_zero_norms(module: nn.Module) -> None:
    """Give batch norms that start at scale zero, which end residual branches, a scale they can keep when frozen.

    An untrained backbone would learn them; frozen, their branches stay dead for ever. With 1/√n each, n branches
    together add about as much as the signal they start from.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d) and norm.affine]
    dead = [norm for norm in norms if not norm.weight.is_meta and not norm.weight.any()]
    for norm in dead:
        nn.init.constant_(norm.weight, len(dead) ** -0.5)


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    from timm.layers.norm_act import BatchNormAct2d

    after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else None
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps, after=after)
    numbers = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    for name, buffer in frozen.named_buffers(recurse=False):
        if name in numbers:  # a norm without affine part has no weight and bias: 1 and 0
            buffer.copy_(numbers[name].detach())
    return frozen
