"""Batch norms that never change, as in DETR's backbone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
        return self.after(torch.addcmul(shift, features, scale))


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
