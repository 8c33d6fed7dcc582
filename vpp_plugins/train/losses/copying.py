"""Copying: what a coordinate's head hands on from a token spells that coordinate of the box that the token shows.

Value and output matrix of head k of the last layer, applied to one token of the evidence alone, then the final norm
and the numbers' rows of the output head: cross-entropy with a bell around coordinate k, less the bell's own entropy.
Ours; the head's value-output circuit is that of Elhage et al., A Mathematical Framework for Transformer Circuits, 2021.

The final norm makes that as loud as a whole residual stream, which a small model from scratch learns to match. In a
pretrained one the stream is large: SmolLM2's heads spelled boxes well when what they handed on was a twentieth of it,
and answers did not change. "writing" weighs it as it is beside the stream.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vpp_plugins.train.collate import About
from vpp_plugins.train.labels import IGNORED
from vpp_plugins.train.losses.coordinates import bell
from vpp_plugins.train.losses.evidence import Evidence, centres, contains, described_boxes, in_frame
from vpp_plugins.train.losses.heads import COORDINATES, HeadLoss
from vpp_plugins.train.losses.pointing import decoder_layers, hidden_states


class Copying(HeadLoss):
    """The loss "copying"."""

    name = "copying"
    beside_stream = False
    """Whether what a head hands on counts as large as it is beside the residual stream, or as all that there is."""

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model, processor)
        if self.beside_stream:
            self.catch("stream", decoder_layers(self.host, self.name)[-1])

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the mean over all evidence that shows a box and its four coordinates; zero where there is none."""
        evidence, caught = self.evidence(about, inputs), self.caught.pop("attention")
        hidden, stream = caught["hidden_states"], self._stream(inputs["labels"])
        boxes = None if evidence is None else shown_boxes(evidence, about)
        nothing: Tensor = hidden.sum() * 0
        if evidence is None or boxes is None or not boxes.isfinite().all(-1).any():
            return nothing
        shows = boxes.isfinite().all(-1)
        logits = self.spelled(hidden[evidence.rows[:, None], evidence.columns][shows], stream)
        target = bell(boxes[shows].to(logits))
        loss: Tensor = (target * (target.clamp(min=1e-9).log() - logits.log_softmax(-1))).sum(-1).mean()
        return loss

    def spelled(
        self, hidden: Float[Tensor, "tokens width"], stream: Float[Tensor, ""] | None = None
    ) -> Float[Tensor, "tokens 4 numbers"]:
        """Return what the output head reads when head k hands on one token alone, beside a stream of some length."""
        values = self.projected("v_proj", hidden)
        alone = torch.zeros(len(values), COORDINATES, *values.shape[1:]).to(values)
        for k in range(COORDINATES):
            alone[:, k, k] = values[:, k]
        attention, decoder = self._attention[0], self.host.get_decoder()
        handed = attention.get_submodule("o_proj")(rearrange(alone, "n k heads dim -> n k (heads dim)").to(hidden))
        table = self.host.get_output_embeddings().weight[self.coordinates]
        spelled: Tensor = F.linear(decoder.norm(handed).float(), table.float())
        return spelled if stream is None else spelled * handed.float().norm(dim=-1, keepdim=True) / stream

    def _stream(self, labels: Int64[Tensor, "batch length"]) -> Float[Tensor, ""] | None:
        """Return the mean length of what leaves the last layer where answers are spoken; None where it is not asked."""
        if not self.beside_stream:
            return None
        left = hidden_states(self.caught.pop("stream"))[:, :-1][labels[:, 1:] != IGNORED]
        return left.detach().float().norm(dim=-1).mean()


class CopyingAloud(Copying):
    """The loss "writing"; for pretrained language models."""

    name = "writing"
    beside_stream = True


def shown_boxes(evidence: Evidence, about: About) -> Float[Tensor, "images places 4"]:
    """Return the box that each token shows, NaN where it shows none: a query its own, a cell the smallest around it."""
    if evidence.are_queries:
        empty = (evidence.boxes_xyxy[..., 2:] <= evidence.boxes_xyxy[..., :2]).any(-1, keepdim=True)
        return evidence.boxes_xyxy.clamp(0, 1).masked_fill(empty, torch.nan)
    shown = torch.full_like(evidence.boxes_xyxy, torch.nan)
    for image, sample in enumerate(about.imaged):
        boxes = in_frame(described_boxes(sample), sample, square=evidence.square).to(shown)
        for box in sorted(boxes, key=lambda box: -float((box[2:] - box[:2]).prod())):
            shown[image, contains(box, centres(evidence.boxes_xyxy[image]))] = box.clamp(0, 1)
    return shown
