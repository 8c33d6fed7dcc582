"""DETR's transformer: post-norm encoder and decoder layers and the sine encoding of where a feature lies."""

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vpp_plugins.attention import attend


class MultiheadAttention(nn.Module):
    """Multi-head attention through `attend`, with the parameters of torch's nn.MultiheadAttention, batch first."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "images queries width"],
        key: Float[Tensor, "images keys width"],
        value: Float[Tensor, "images keys width"],
        mask: Bool[Tensor, "images keys"] | None = None,
    ) -> Float[Tensor, "images queries width"]:
        """Attend to the keys where `mask` is True; without a mask to all."""
        heads = [self._project(tokens, part) for part, tokens in enumerate((query, key, value))]
        attended = attend(*heads, mask=mask, dropout=self.dropout if self.training else 0.0)
        projected: Tensor = self.out_proj(rearrange(attended, "images heads tokens dim -> images tokens (heads dim)"))
        return projected

    def _project(self, tokens: Tensor, part: int) -> Tensor:
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        projected = F.linear(tokens, weight, bias)
        return rearrange(projected, "images tokens (heads dim) -> images heads tokens dim", heads=self.heads)


class EncoderLayer(nn.Module):
    """Self-attention over the picture's features, then a feed-forward net; each is added and then normalised."""

    def __init__(self, width: int, heads: int, feedforward: int, *, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout=dropout)
        self.linear1 = _linear(width, feedforward)
        self.linear2 = _linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "images tokens width"],
        position: Float[Tensor, "#images tokens width"],
        mask: Bool[Tensor, "images tokens"] | None = None,
    ) -> Float[Tensor, "images tokens width"]:
        placed = tokens + position
        tokens = self.norm1(tokens + self.dropout(self.self_attn(placed, placed, tokens, mask)))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        normalised: Tensor = self.norm2(tokens + self.dropout(self.linear2(hidden)))
        return normalised


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the picture, a feed-forward net; each is added, then normalised."""

    def __init__(self, width: int, heads: int, feedforward: int, *, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout=dropout)
        self.multihead_attn = MultiheadAttention(width, heads, dropout=dropout)
        self.linear1 = _linear(width, feedforward)
        self.linear2 = _linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "images queries width"],
        query_position: Float[Tensor, "queries width"],
        memory: Float[Tensor, "images tokens width"],
        placed_memory: Float[Tensor, "images tokens width"],
        mask: Bool[Tensor, "images tokens"] | None = None,
    ) -> Float[Tensor, "images queries width"]:
        """`placed_memory` is the memory with its position added: the keys, while the memory itself gives the values."""
        placed = queries + query_position
        queries = self.norm1(queries + self.dropout(self.self_attn(placed, placed, queries)))
        attended = self.multihead_attn(queries + query_position, placed_memory, memory, mask)
        queries = self.norm2(queries + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(queries)))
        normalised: Tensor = self.norm3(queries + self.dropout(self.linear2(hidden)))
        return normalised


def sine_encoding(mask: Bool[Tensor, "images height width"], size: int) -> Float[Tensor, "images tokens {size}"]:
    """Return where each feature lies, as sines and cosines of its row (first half of `size`) and its column.

    Rows and columns are counted over the True part of the mask and scaled to end at 2π. Tokens are in row-major order.
    """
    rows, columns = (mask.cumsum(axis, dtype=torch.float32) for axis in (1, 2))
    rows = rows / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
    columns = columns / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
    return torch.cat([_waves(rows, size // 2), _waves(columns, size // 2)], dim=-1).flatten(1, 2)


def full_sine_encoding(
    height: int, width: int, size: int, *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "1 tokens {size}"]:
    """Return the sine encoding of a picture without padding, computed once per argument set. Don't write to it."""
    if torch.compiler.is_compiling():  # a graph folds the constant itself, and Dynamo warns about lru_cache
        return _full_sine_encoding.__wrapped__(height, width, size, device, dtype)
    return _full_sine_encoding(height, width, size, device, dtype)


@functools.lru_cache(maxsize=32)
def _full_sine_encoding(height: int, width: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # made under inference_mode, it could not be used in training later
        mask = torch.ones(1, height, width, dtype=torch.bool, device=device)
        return sine_encoding(mask, size).to(dtype)


def _waves(angle: Tensor, size: int) -> Tensor:
    """Return sin, cos, sin, cos, … of the angles divided by ever larger numbers, up to 10000."""
    exponent = torch.arange(0, size, 2, dtype=torch.float32, device=angle.device) / size
    angles = angle[..., None] / 10000**exponent
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    return linear
