"""DETR's transformer: post-norm encoder and decoder layers and the sine encoding of where a feature lies."""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vpp_plugins.prompts.attention import attend, attend_ragged


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
        query: Float[Tensor, "rows queries width"],
        key: Float[Tensor, "keyrows keys width"],
        value: Float[Tensor, "keyrows keys width"],
        mask: Bool[Tensor, "keyrows keys"] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "rows queries width"]:
        """Attend to the keys of the same image where `mask` is True; without a mask to all of them.

        With `lengths`, one per image, the images' keys are packed one after the other into one row; the queries are
        too, with the same lengths, or have a row for each image.
        """
        queries, keys, values = self._project(query, key, value)
        dropout = self.dropout if self.training else 0.0
        if lengths is None:
            heads = (part.transpose(1, 2) for part in (queries, keys, values))
            attended = attend(*heads, mask=mask, dropout=dropout).transpose(1, 2)
        else:
            each = [query.shape[1]] * len(query) if len(query) == len(lengths) else lengths
            attended = attend_ragged(queries.flatten(0, 1)[None], keys, values, each, lengths, dropout=dropout)
        return self.out_proj(attended.reshape(query.shape))

    def _project(self, *query_key_value: Tensor) -> list[Tensor]:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [
            rearrange(F.linear(*parts), "images tokens (heads dim) -> images tokens heads dim", heads=self.heads)
            for parts in zip(query_key_value, weights, biases, strict=True)
        ]


class EncoderLayer(nn.Module):
    """Self-attention over the image's features, then a feed-forward net; each is added and then normalised."""

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
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "images tokens width"]:
        """With `lengths`, one per image, the images' tokens are packed one after the other into one row."""
        placed = tokens + position
        tokens = self.norm1(tokens + self.dropout(self.self_attn(placed, placed, tokens, mask, lengths)))
        hidden = self.dropout(F.relu(self.linear1(tokens), inplace=True))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the image, a feed-forward net; each is added, then normalised."""

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
        memory: Float[Tensor, "rows tokens width"],
        placed_memory: Float[Tensor, "rows tokens width"],
        mask: Bool[Tensor, "images tokens"] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "images queries width"]:
        """`placed_memory` is the memory with its position added: the keys, while the memory itself gives the values.

        With `lengths`, one per image, the images' memories are packed one after the other into one row.
        """
        placed = queries + query_position
        queries = self.norm1(queries + self.dropout(self.self_attn(placed, placed, queries)))
        placed = queries + query_position
        attended = self.multihead_attn(placed, placed_memory, memory, mask, lengths)
        queries = self.norm2(queries + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(queries), inplace=True))
        return self.norm3(queries + self.dropout(self.linear2(hidden)))


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
    """Return the sine encoding of an image without padding, computed once per argument set. Don't write to it."""
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
