"""Convolutions by oneDNN, on weights in its own order and fused with what follows; by torch where oneDNN is not."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Geometry(NamedTuple):
    """The numbers of a convolution, rows before columns."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int


def reordered(weight: Float[Tensor, "outputs inputs rows columns"], geometry: Geometry, shape: list[int]) -> Tensor:
    """Return the weight in the order that oneDNN wants for features of this shape; as it is where oneDNN is not.

    Features of another height or width then still get their right convolution, but up to a hundred times slower.
    """
    enabled = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    bfloat16 = weight.dtype == torch.bfloat16 and enabled and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not enabled or not (weight.dtype == torch.float32 or bfloat16):
        return weight
    in_order: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, shape)
    return in_order


def convolve(
    features: Float[Tensor, "images inputs height width"],
    weight: Float[Tensor, "outputs _ _ _"],
    bias: Float[Tensor, " outputs"],
    geometry: Geometry,
    *,
    relu: bool = False,
) -> Float[Tensor, "images outputs rows columns"]:
    """Return the convolution, or its ReLU; `weight` is from `reordered`."""
    if weight.is_mkldnn:
        after = "relu" if relu else "none"
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(features, weight, bias, *geometry, after, [], "")
        return fused
    convolved = _plainly(features, weight, bias, geometry)
    return convolved.relu_() if relu else convolved


def convolve_add(
    features: Float[Tensor, "images inputs height width"],
    weight: Float[Tensor, "outputs _ _ _"],
    bias: Float[Tensor, " outputs"],
    geometry: Geometry,
    residual: Float[Tensor, "images outputs rows columns"],
) -> Float[Tensor, "images outputs rows columns"]:
    """Return relu(convolution + residual), in the residual's memory where that saves a pass."""
    if weight.is_mkldnn:
        summed: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, features, weight, bias, *geometry, "add", 1.0, "relu", [], ""
        )
        return summed
    return _plainly(features, weight, bias, geometry).add_(residual).relu_()


def _plainly(features: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry) -> Tensor:
    padding, stride, dilation, groups = geometry
    return F.conv2d(features, weight, bias, stride, padding, dilation, groups)
