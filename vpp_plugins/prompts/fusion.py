"""Fusion: how the local prompt's tokens and the image's own come together (the paper's ablation of concatenation).

Concatenation, the default and VPP-LLaVA's way, needs no code: both stand in the text, and the language model attends to
them. By cross-attention one of the two is first enriched by the other, image by image, and added to: both keep
their places and their number. A fresh fusion adds zero, so it starts as concatenation, bit for bit.

How the paper wires its two variants is not known to us in detail; these are ours, with the same two directions.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.attention import attend_ragged

Direction = Literal["queries-attend", "image-attends"]


class Fusion(NamedTuple):
    """A cross-attention made ready for one forward: what CrossAttention's parameters amount to."""

    direction: Direction
    to_query: Float[Tensor, "width hidden"]
    to_key: Float[Tensor, "width hidden"]
    to_value: Float[Tensor, "width hidden"]
    to_output: Float[Tensor, "hidden width"]
    heads: int
    num_queries: int
    """Tokens of the local prompt per image."""

    def fuse(
        self,
        embeddings: Float[Tensor, "batch length hidden"],
        is_image: Bool[Tensor, "batch length"],
        is_local: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch length hidden"]:
        """Return the language model's inputs with one kind of token enriched by the other, within each image.

        An image's own tokens come before its local prompt's, and after those of the image before.
        """
        image, local = embeddings[is_image], embeddings[is_local]
        sizes = self._image_sizes(is_image, is_local)
        counts = [self.num_queries] * len(sizes)
        if self.direction == "queries-attend":
            added, places = self._attend(local, image, counts, sizes), is_local
        else:
            added, places = self._attend(image, local, sizes, counts), is_image
        return embeddings + torch.zeros_like(embeddings).masked_scatter(places[..., None], added)

    def _image_sizes(self, is_image: Bool[Tensor, "batch length"], is_local: Bool[Tensor, "batch length"]) -> list[int]:
        """Return how many tokens of its own each image has, in reading order."""
        number: Int[Tensor, "batch length"] = is_local.long().cumsum(1) // self.num_queries
        images = is_local.sum(1) // self.num_queries
        first = (images.cumsum(0) - images)[:, None]
        return torch.bincount((first + number)[is_image], minlength=int(images.sum())).tolist()

    def _attend(
        self,
        asking: Float[Tensor, "tokens hidden"],
        asked: Float[Tensor, "others hidden"],
        asking_sizes: Sequence[int],
        asked_sizes: Sequence[int],
    ) -> Float[Tensor, "tokens hidden"]:
        query = self._heads(asking, self.to_query)
        key, value = (self._heads(asked, weight) for weight in (self.to_key, self.to_value))
        attended = attend_ragged(query, key, value, asking_sizes, asked_sizes)
        output: Tensor = F.linear(
            rearrange(attended, "1 tokens heads dim -> tokens (heads dim)"), self.to_output.to(asking)
        )
        return output

    def _heads(
        self, tokens: Float[Tensor, "tokens hidden"], weight: Float[Tensor, "width hidden"]
    ) -> Float[Tensor, "1 tokens heads dim"]:
        normalised = F.layer_norm(tokens, tokens.shape[-1:])  # image and prompt differ in scale
        projected = F.linear(normalised, weight.to(tokens))
        return rearrange(projected, "tokens (heads dim) -> 1 tokens heads dim", heads=self.heads)


class CrossAttention(nn.Module):
    """The weights of a fusion. `width` is that of all heads together."""

    def __init__(self, hidden_size: int, width: int, *, direction: Direction, num_queries: int, heads: int = 8) -> None:
        super().__init__()
        if width % heads:
            raise VPPError(f"the width of a fusion must be a multiple of its {heads} heads, but is {width}.")
        self.direction, self.num_queries, self.heads = direction, num_queries, heads
        self.to_query, self.to_key, self.to_value = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, hidden_size))) for _ in range(3)
        )
        self.to_output = nn.Parameter(torch.zeros(hidden_size, width))

    def forward(self) -> Fusion:
        """Return the fusion as data, to be applied to the language model's inputs later in the same forward."""
        # times one: plain tensors also where a wrapper (FSDP, offload) takes the parameters away again
        weights = (self.to_query * 1, self.to_key * 1, self.to_value * 1, self.to_output * 1)
        return Fusion(self.direction, *weights, heads=self.heads, num_queries=self.num_queries)
