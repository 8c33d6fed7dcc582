"""Pointing: hidden states at an answer's start and at its numbers pick the tokens that show what is spoken of.

At layer l, a place t of an answer scores the evidence e by s * cos(W_l h_l(t), x(e)), where h are hidden states, x the
language model's inputs, and W_l and s are learned; the loss is -log of the softmax's mass on the tokens that fit,
averaged over places and over the two layers below the last. Ours; the nearest published relative is a pointer network
(Vinyals et al., arXiv 1506.03134, equation 3).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.train.collate import About
from vpp_plugins.train.losses.evidence import EvidenceLoss

SHARPNESS = 8.0
"""What the cosine is multiplied with at first."""


class Pointing(EvidenceLoss):
    """The loss "pointing"; for any host whose images have tokens, or whose queries say where they look."""

    name = "pointing"

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model, processor)
        layers = decoder_layers(self.host, self.name)
        self.chosen = [f"layer {index}" for index in range(max(len(layers) - 3, 0), max(len(layers) - 1, 1))]
        width = self.host.get_input_embeddings().weight.shape[1]
        maps = [nn.Linear(width, width, bias=False) for _ in self.chosen]
        for layer in maps:
            nn.init.eye_(layer.weight)
        self.maps = nn.ModuleList(maps)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.catch_inputs("inputs", layers[0])
        for name in self.chosen:
            self.catch(name, layers[int(name.split()[1])])

    def learning_rate(self, groups: Sequence[Mapping[str, Any]]) -> float:
        """Return the fastest part's rate: the maps are as new as what is trained from the start."""
        return max(float(group["lr"]) for group in groups)

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the mean over all places that speak of a box; zero where there is none."""
        evidence = self.evidence(about, inputs)
        embedded = self.caught.pop("inputs")["hidden_states"]
        states = [hidden_states(self.caught.pop(name)) for name in self.chosen]
        nothing = torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0
        if evidence is None:
            return nothing
        spoken = self.spoken(about, inputs["labels"], evidence)
        if not len(spoken.image):
            return nothing
        shown = F.normalize(embedded[evidence.rows[:, None], evidence.columns].float(), dim=-1)[spoken.image]
        losses = []
        for layer, state in zip(self.maps, states, strict=True):
            pointed = F.normalize(layer(state[evidence.rows[spoken.image], spoken.column].float()), dim=-1)
            scores = self.sharpness * torch.einsum("nd,nkd->nk", pointed.float(), shown)
            losses.append(-scores.log_softmax(-1).masked_fill(~spoken.fits, -torch.inf).logsumexp(-1).mean())
        return torch.stack(losses).mean()


def decoder_layers(host: Any, loss: str) -> nn.ModuleList:
    """Return the layers of the host's language model; raises VPPError where they are not one list."""
    layers = dict(host.get_decoder().named_children()).get("layers")
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise VPPError(
            f"the loss '{loss}' reads the layers of a decoder, which the language model of this "
            f"'{host.config.model_type}' does not list: leave it out."
        )
    return layers


def hidden_states(caught: Any) -> Float[Tensor, "batch length width"]:
    """Return a layer's hidden states, which some return, or are given, with other things."""
    states: Tensor = caught[0] if isinstance(caught, tuple) else caught
    return states
