"""A loss that aligns tokens that show an image with the words for what they show, as LLaVA's first stage does.

These are the image's own projected tokens and, where the generator says where its queries look, the projected queries.
A token counts as what is described at its place (`Describe` turns), a query as what it overlaps most, from half on;
with nothing described there, as padding.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.ops import box_iou

from vpp_plugins.attach import active_vpp, host_state
from vpp_plugins.data import Describe, Sample
from vpp_plugins.errors import VPPError
from vpp_plugins.train.collate import About
from vpp_plugins.train.detector import letterboxed
from vpp_plugins.train.losses.base import AuxiliaryLoss
from vpp_plugins.train.losses.evidence import FITS, boxed_generator, centres, contains, grid

EMPTY = 0.2
"""Weight of a token where nothing is described, beside 1."""


class WordAlignment(AuxiliaryLoss):
    """Listens to the projector of an attached model whose images are one square grid of tokens, as LLaVA's.

    Raises VPPError where the host has not exactly one projector.
    """

    name = "words"
    reads_language_model = False

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model)
        projectors = host_state(self.host).backbone.projectors
        if len(projectors) != 1:
            raise VPPError(
                f"the loss '{self.name}' needs a host with one projector, but this one has {len(projectors)}: leave it "
                "out."
            )
        self.tokenizer = processor.tokenizer
        self.catch("tokens", self.host.get_submodule(projectors[0]))
        self.generator, local = boxed_generator(self.host), active_vpp(self.host).local_vpp
        if self.generator is not None and local is not None:
            self.catch("queries", self.generator)
            self.catch("projected", local.projector)

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the mean over all tokens of the images, plus that over all queries; zero without an image.

        Also then the projectors have their place in the backward pass, by a batch of text's stand-in image.
        """
        tokens, samples = self.caught.pop("tokens", None), about.imaged
        queries, projected = self.caught.pop("queries", None), self.caught.pop("projected", None)
        if tokens is None:
            return torch.zeros(())
        if not samples:
            return (tokens.sum() + (0 if projected is None else projected.sum())) * 0
        side = isqrt(tokens.shape[1])
        if tokens.ndim != 3 or side**2 != tokens.shape[1] or len(tokens) != len(samples):
            raise VPPError(
                f"the loss '{self.name}' needs one square grid of tokens for each of {len(samples)} images, but the "
                f"projector made {list(tokens.shape)}: leave it out for this host."
            )
        described = [described_things(sample) for sample in samples]
        loss = self._read(tokens, [shown_by_cells(*things, side) for things in described])
        if self.generator is not None:
            boxes = self.generator.boxes(queries[: len(samples)].detach()).float().cpu()
            shown = [shown_by_queries(*things, own) for things, own in zip(described, boxes, strict=True)]
            loss = loss + self._read_queries(projected[: len(samples)], shown)
        return loss

    def pairs(self, shown: Sequence[Sequence[str]]) -> Int64[Tensor, "pairs 3"]:
        """Return image, place and token of every word that is shown; where nothing is, it is the padding token."""
        pairs = [
            (image, place, word)
            for image, texts in enumerate(shown)
            for place, text in enumerate(texts)
            for word in self._ids(text)
        ]
        return torch.tensor(pairs)

    def _read(self, tokens: Float[Tensor, "images places width"], shown: Sequence[Sequence[str]]) -> Float[Tensor, ""]:
        """Return how badly the embedding table reads the tokens as the words that they show."""
        images, places, words = self.pairs(shown).to(tokens.device).T
        table: Tensor = self.host.get_input_embeddings().weight
        read = F.linear(F.rms_norm(tokens.float(), tokens.shape[-1:]), table.float()).log_softmax(-1)
        counts = torch.where(words == self.tokenizer.pad_token_id, EMPTY, 1.0)
        return -(read[images, places, words] * counts).sum() / counts.sum()

    def _read_queries(
        self, tokens: Float[Tensor, "images places width"], shown: Sequence[Sequence[str]]
    ) -> Float[Tensor, ""]:
        return self._read(tokens, shown)

    def _ids(self, text: str) -> list[int]:
        if not text:
            return [self.tokenizer.pad_token_id]
        return self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


def described_things(sample: Sample) -> tuple[Float[Tensor, "things 4"], list[str]]:
    """Return what a sample describes, the largest first: boxes in fractions of the padded square, and words."""
    described = [(turn.boxes[0], turn.description) for turn in sample.turns if isinstance(turn, Describe)]
    if not described:
        return torch.zeros(0, 4), []
    boxes = letterboxed([box for box, _ in described], sample.meta.size_hw)
    order = (boxes[:, 2:] - boxes[:, :2]).prod(-1).argsort(descending=True, stable=True).tolist()
    return boxes[order], [described[index][1] for index in order]


def shown_by_cells(boxes_xyxy: Float[Tensor, "things 4"], words: Sequence[str], side: int) -> list[str]:
    """Return the words of each cell of a square grid, "" where nothing is described; the smallest thing counts."""
    shown, points = [""] * side**2, centres(grid(side, side))
    for box, text in zip(boxes_xyxy, words, strict=True):
        for cell in contains(box, points).nonzero()[:, 0].tolist():
            shown[cell] = text
    return shown


def shown_by_queries(
    boxes_xyxy: Float[Tensor, "things 4"], words: Sequence[str], queries_xyxy: Float[Tensor, "queries 4"]
) -> list[str]:
    """Return the words of what each query overlaps most, "" where that is less than half."""
    if not words:
        return [""] * len(queries_xyxy)
    overlap, thing = box_iou(queries_xyxy, boxes_xyxy).max(-1)
    return [
        words[index] if share >= FITS else "" for share, index in zip(overlap.tolist(), thing.tolist(), strict=True)
    ]
