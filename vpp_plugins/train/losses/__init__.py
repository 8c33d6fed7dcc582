"""Losses beside the answer's own, one file each: a recipe's `losses = ["words:0.3", "detection:0.1"]`."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from vpp_plugins import plugins
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.train.losses.alignment import Alignment
from vpp_plugins.train.losses.base import AuxiliaryLoss
from vpp_plugins.train.losses.coordinates import HiddenBoxes, SoftBoxLoss, coordinate_ids, learned_alone
from vpp_plugins.train.losses.copying import Copying, CopyingAloud
from vpp_plugins.train.losses.detection import AuxiliaryDetection, named_objects
from vpp_plugins.train.losses.looking import Looking
from vpp_plugins.train.losses.naming import Naming
from vpp_plugins.train.losses.pointing import Pointing
from vpp_plugins.train.losses.words import WordAlignment

__all__ = [
    "ANSWERS",
    "AuxiliaryDetection",
    "AuxiliaryLoss",
    "HiddenBoxes",
    "SoftBoxLoss",
    "answer_loss",
    "build_losses",
    "check_losses",
    "coordinate_ids",
    "learned_alone",
    "named_objects",
    "read_language_model",
]

ANSWERS = "coordinates"
"""The name that is no loss beside the answer's own, but that loss itself with soft numbers."""
KINDS = (WordAlignment, Alignment, AuxiliaryDetection, Pointing, Naming, Looking, Copying, CopyingAloud)
BUILT_IN: Mapping[str, Callable[[nn.Module, Any], AuxiliaryLoss]] = {kind.name: kind for kind in KINDS}
SILENT = frozenset(kind.name for kind in KINDS if not kind.reads_language_model)
"""Those for which the language model need not be run; of plugins' it is not known before they are built."""


def check_losses(weights: Mapping[str, float]) -> None:
    """Raise VPPError for a name that nobody can bring, and for a weight of the answer's own loss; needs no model."""
    if weights.get(ANSWERS, 1) != 1:
        raise VPPError(f"'{ANSWERS}' is the answer's own loss, whose weight is 1, but is given {weights[ANSWERS]:g}.")
    for name in weights:
        if name not in (*BUILT_IN, ANSWERS) and not plugins.brings_losses():
            raise _unknown(name)


def _unknown(name: str) -> VPPError:
    known = (*BUILT_IN, ANSWERS)
    return VPPError(
        f"no loss is called '{name}'.{nearest(name, known)} Built in: {', '.join(known)}; others come as plugins."
    )


def read_language_model(weights: Mapping[str, float]) -> bool:
    """Return whether any of a recipe's losses may listen to the language model; needs no model."""
    return not SILENT.issuperset(weights)


def build_losses(weights: Mapping[str, float], model: nn.Module, processor: Any) -> list[AuxiliaryLoss]:
    """Build the losses of a recipe on an attached model, its wrappers on already.

    Raises VPPError for a name that nobody knows, and for a model that a loss cannot work on.
    """
    losses = []
    for name, weight in weights.items():
        if name != ANSWERS:
            loss = _build(name, model, processor)
            loss.name, loss.weight = name, weight
            losses.append(loss)
    return losses


def answer_loss(weights: Mapping[str, float], tokenizer: Any) -> SoftBoxLoss | None:
    """Return what Trainer takes in place of the host's own loss, or None where the recipe keeps that."""
    return SoftBoxLoss(coordinate_ids(tokenizer)) if ANSWERS in weights else None


def _build(name: str, model: nn.Module, processor: Any) -> AuxiliaryLoss:
    if name in BUILT_IN:
        return BUILT_IN[name](model, processor)
    loss = plugins.build_loss(name, model, processor)
    if loss is None:
        raise _unknown(name)
    if not isinstance(loss, AuxiliaryLoss):
        raise VPPError(f"the plugin's loss '{name}' should be an AuxiliaryLoss, but is a {type(loss).__name__}.")
    return loss
