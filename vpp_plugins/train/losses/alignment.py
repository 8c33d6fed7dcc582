"""Alignment: what shows an image enters a pretrained language model as its words, and queries still tell where it is.

"words" for pretrained language models, whose tables are large: the table reads a token as the words for what it shows
among the batch's words and rows drawn once (a sampled softmax, Jean et al., arXiv 1412.2007, section 3), and a token
stays about as long as a word's vector, a query, which carries its box besides, 1.5 times: + (length / wanted - 1)^2.
What writes a query's box, see `start_with_boxes`, keeps its weights, or words would drown it.

It needs no language model: with `answers = false` in a recipe the projectors alone run, for a twentieth of the cost.
Ours.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vpp_plugins.attach import active_vpp
from vpp_plugins.pocket import written_boxes
from vpp_plugins.train.losses.words import EMPTY, WordAlignment

OTHERS = 2048
"""Rows of the table, beside the batch's words, among which a token's words are to be found."""
LONGER = 1.5
"""How much longer than a word's vector a query should be."""


class Alignment(WordAlignment):
    """The loss "alignment"."""

    name = "alignment"

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model, processor)
        table: Tensor = self.host.get_input_embeddings().weight.detach()
        self.length = float(table[: len(self.tokenizer)].float().norm(dim=-1).mean())
        self.others = drawn_rows(self.tokenizer)
        local: Any = active_vpp(self.host).local_vpp
        if local is not None and (half := written_boxes(local)):
            first, _, last = local.projector
            for weights, part in ((first.weight, half), (first.bias, half), (last.weight, (slice(None), half))):
                if weights.requires_grad:
                    self._handles.append(weights.register_hook(partial(_without, part)))

    def _read(self, tokens: Float[Tensor, "images places width"], shown: Sequence[Sequence[str]]) -> Float[Tensor, ""]:
        return self._words(tokens, shown) + self._longer(tokens, 1.0)

    def _read_queries(
        self, tokens: Float[Tensor, "images places width"], shown: Sequence[Sequence[str]]
    ) -> Float[Tensor, ""]:
        return self._words(tokens, shown) + self._longer(tokens, LONGER)

    def _words(self, tokens: Float[Tensor, "images places width"], shown: Sequence[Sequence[str]]) -> Float[Tensor, ""]:
        images, places, words = self.pairs(shown).to(tokens.device).T
        counts = torch.where(words == self.tokenizer.pad_token_id, EMPTY, 1.0)
        table: Tensor = self.host.get_input_embeddings().weight
        return read_as_words(tokens.flatten(0, 1), images * tokens.shape[1] + places, words, counts, table, self.others)

    def _longer(self, tokens: Float[Tensor, "images places width"], times: float) -> Float[Tensor, ""]:
        return (tokens.float().norm(dim=-1) / (times * self.length) - 1).square().mean()


def _without(part: Any, gradient: Tensor) -> Tensor:
    kept = gradient.clone()
    kept[part] = 0
    return kept


def drawn_rows(tokenizer: Any) -> Int64[Tensor, " rows"]:
    """Return the rows of the table among which words are to be found, the same ones each time."""
    return torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(0))[:OTHERS]


def read_as_words(
    states: Float[Tensor, "places width"],
    places: Int64[Tensor, " pairs"],
    words: Int64[Tensor, " pairs"],
    counts: Float[Tensor, " pairs"],
    table: Float[Tensor, "rows width"],
    others: Int64[Tensor, " others"],
) -> Float[Tensor, ""]:
    """Return how badly the table reads states as the words that belong to them, of all these words and other rows.

    One pair is a place and one of its words, and counts so much; the mean is over all pairs.
    """
    rows, among = torch.cat([words, others.to(words)]).unique(return_inverse=True)
    read = F.linear(F.rms_norm(states.float(), states.shape[-1:]), table[rows].float()).float().log_softmax(-1)
    return -(read[places, among[: len(words)]] * counts).sum() / counts.sum()
