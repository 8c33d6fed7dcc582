"""A loss that aligns an image's projected tokens with the words for what they show, as LLaVA's first stage does.

A token counts as what is described at its place (`Describe` turns); with nothing described there, as padding.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.attach import host_state
from vpp_plugins.data import Describe, Sample
from vpp_plugins.errors import VPPError
from vpp_plugins.train.collate import About
from vpp_plugins.train.detector import letterboxed
from vpp_plugins.train.losses.base import AuxiliaryLoss

EMPTY = 0.2
"""Weight of a token where nothing is described, beside 1."""


class WordAlignment(AuxiliaryLoss):
    """Listens to the projector of an attached model whose images are one square grid of tokens, as LLaVA's.

    Raises VPPError where the host has not exactly one projector.
    """

    name = "words"

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model)
        projectors = host_state(self.host).backbone.projectors
        if len(projectors) != 1:
            raise VPPError(
                f"the loss 'words' needs a host with one projector, but this one has {len(projectors)}: leave it out."
            )
        self.tokenizer = processor.tokenizer
        self.catch("tokens", self.host.get_submodule(projectors[0]))

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the mean over all tokens of the images; zero without an image."""
        tokens, samples = self.caught.pop("tokens", None), about.imaged
        if tokens is None or not samples:
            return torch.zeros(())
        side = isqrt(tokens.shape[1])
        if tokens.ndim != 3 or side**2 != tokens.shape[1] or len(tokens) != len(samples):
            raise VPPError(
                f"the loss 'words' needs one square grid of tokens for each of {len(samples)} images, but the "
                f"projector made {list(tokens.shape)}: leave it out for this host."
            )
        pairs = [(n, *pair) for n, sample in enumerate(samples) for pair in self._words(sample, side)]
        images, cells, words = torch.tensor(pairs, device=tokens.device).T
        table: Tensor = self.host.get_input_embeddings().weight
        read = F.linear(F.rms_norm(tokens.float(), tokens.shape[-1:]), table.float()).log_softmax(-1)
        counts = torch.where(words == self.tokenizer.pad_token_id, EMPTY, 1.0)
        return -(read[images, cells, words] * counts).sum() / counts.sum()

    def _words(self, sample: Sample, side: int) -> list[tuple[int, int]]:
        """Return (cell, token) for each token of each cell's description; of boxes that overlap the smaller counts."""
        described = [(turn.boxes[0], turn.description) for turn in sample.turns if isinstance(turn, Describe)]
        owner: dict[int, str] = {}
        if described:
            boxes = letterboxed([box for box, _ in described], sample.meta.size_hw).tolist()
            by_size = sorted(zip(boxes, described, strict=True), key=lambda pair: -_area(pair[0]))
            for (x1, y1, x2, y2), (_, text) in by_size:
                columns = [c for c in range(side) if x1 <= (c + 0.5) / side <= x2]
                owner |= {r * side + c: text for r in range(side) if y1 <= (r + 0.5) / side <= y2 for c in columns}
        return [(cell, word) for cell in range(side * side) for word in self._ids(owner.get(cell))]

    def _ids(self, text: str | None) -> list[int]:
        if text is None:
            return [self.tokenizer.pad_token_id]
        ids: list[int] = self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return ids


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
