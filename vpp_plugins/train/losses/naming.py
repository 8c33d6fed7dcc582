"""Naming: pointing, whose mapped hidden states also read as the words for what is spoken of.

At layer l and a place t of an answer about something that the sample describes, W_l h_l(t) of "pointing" is read by
the embedding table, among the batch's words and rows drawn once: -log of the words' share, averaged, weighted 0.3.

A pretrained language model learns to fetch a noun out of the question far sooner than to choose among queries, and
where these read as their nouns ("alignment"), one is nearly the other: see docs/evidence.md. Ours.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.data import Describe
from vpp_plugins.train.collate import About
from vpp_plugins.train.losses.alignment import drawn_rows, read_as_words
from vpp_plugins.train.losses.pointing import Pointing, hidden_states

NAMED = 0.3
"""Weight of the words, beside 1 for the tokens that show what is spoken of."""
Said = tuple[int, int, list[int]]
"""A row of the batch, a place in it whose next token belongs to a box, and the words for what is in the box."""


class Naming(Pointing):
    """The loss "naming"; samples without descriptions (`Describe` turns) leave it at pointing."""

    name = "naming"

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model, processor)
        self.others = drawn_rows(self.tokenizer)

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the mean over all places that speak of a box; zero where there is none."""
        states = [hidden_states(self.caught[name]) for name in self.chosen]
        pointing = super().forward(about, inputs, outputs)
        said = self.said(about, inputs["labels"])
        if not said:
            return pointing
        rows, columns, words = zip(*said, strict=True)
        pairs = [(place, word, 1 / len(named)) for place, named in enumerate(words) for word in named]
        places, ids, counts = (torch.tensor(column, device=pointing.device) for column in zip(*pairs, strict=True))
        table = self.host.get_input_embeddings().weight.detach()
        named = [
            read_as_words(layer(state[rows, columns].float()), places, ids, counts, table, self.others)
            for layer, state in zip(self.maps, states, strict=True)
        ]
        return pointing + NAMED * torch.stack(named).mean()

    def said(self, about: About, labels: Tensor) -> list[Said]:
        """Return where answers speak of one box that the sample describes, and its words."""
        described = [
            {tuple(turn.boxes[0]): turn.description for turn in sample.turns if isinstance(turn, Describe)}
            for sample in about.imaged
        ]
        found: list[Said] = []
        for image, turn, places in self.located(about, labels):
            name = described[image].get(tuple(turn.boxes[0]))
            words = self.tokenizer(f" {name}", add_special_tokens=False)["input_ids"] if name else []
            found += [(about.imaged_rows[image], column, words) for column, _ in places if words]
        return found
