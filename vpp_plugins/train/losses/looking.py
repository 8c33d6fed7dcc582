"""Looking: where a coordinate comes next, its head attends to the evidence that fits.

For head k of the last layer, at every place where coordinate k comes next: -log of its attention on the evidence that
fits, and, weighted 0.2, -log(1 - the attention of each of the other three heads on any evidence). Ours.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vpp_plugins.train.collate import About
from vpp_plugins.train.losses.evidence import Evidence, Spoken
from vpp_plugins.train.losses.heads import COORDINATES, HeadLoss

AWAY = 0.2
"""Weight of the heads that should look elsewhere, beside 1."""


class Looking(HeadLoss):
    """The loss "looking"."""

    name = "looking"

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the mean over all numbers of answers with one box; zero where there is none."""
        evidence, caught = self.evidence(about, inputs), self.caught.pop("attention")
        nothing: Tensor = caught["hidden_states"].sum() * 0
        if evidence is None:
            return nothing
        spoken = self.spoken(about, inputs["labels"], evidence)
        spoken = spoken.only(spoken.coordinate >= 0)
        if not len(spoken.image):
            return nothing
        looked = self.looked(caught, inputs["attention_mask"], evidence, spoken)
        own = F.one_hot(spoken.coordinate, self.heads).bool()
        others = ~own & (torch.arange(self.heads, device=own.device) < COORDINATES)
        on = looked.masked_fill(~spoken.fits[:, None], -torch.inf).logsumexp(-1)[own]
        elsewhere = 1 - looked.logsumexp(-1).exp().clamp(max=0.999)
        loss: Tensor = -on.mean() - AWAY * elsewhere[others].log().mean()
        return loss

    def looked(
        self, caught: Mapping[str, Any], mask: Tensor, evidence: Evidence, spoken: Spoken
    ) -> Float[Tensor, "spoken heads places"]:
        """Return the log of each head's attention on the evidence, at each place that speaks."""
        hidden, rows = caught["hidden_states"], evidence.rows[spoken.image]
        cos, sin = (table.float().expand(len(hidden), -1, -1)[:, :, None] for table in caught["position_embeddings"])
        keys = _rotated(self.projected("k_proj", hidden), cos, sin)
        here = rows, spoken.column
        query = _rotated(self.projected("q_proj", hidden[here]), cos[here], sin[here])
        scores = torch.einsum("nhd,nthd->nht", query, keys[rows]) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~_seen(mask, rows, spoken.column)[:, None], -torch.inf).log_softmax(-1)
        places = evidence.columns[spoken.image][:, None].expand(-1, self.heads, -1)
        looked: Tensor = scores.gather(-1, places)
        return looked


def _rotated(x: Float[Tensor, "*batch heads dim"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*batch heads dim"]:
    """Turn by a place's angles, halves paired as Llama's are."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _seen(mask: Tensor, rows: Tensor, columns: Tensor) -> Bool[Tensor, "spoken length"]:
    """Return what each place may look at, of a mask [batch, length] or [batch, 1, length, length]."""
    if mask.ndim == 4:
        return mask[rows, 0, columns].bool()
    back = torch.arange(mask.shape[1], device=mask.device) <= columns[:, None]
    return mask[rows].bool() & back
