"""The hooks that a plugin may implement. A plugin is a module named under the entry-point group `vpp_plugins`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pluggy
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.boxes import BoxCodec
from vpp_plugins.plugins.backbone import Backbone

PROJECT = "vpp_plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Converter = Callable[[Path, Path, torch.dtype | None], None]
"""Called with a checkpoint's folder, a new folder, and the dtype to write, None for the checkpoint's own. Writes what
`from_pretrained` and `attach_vpp(model, folder)` load, whole or not at all."""


@runtime_checkable
class BoxedQueries(Protocol):
    """What a generator may offer besides: where its queries look, which drawing, pointing and copying use.

    Both functions read it out of the queries themselves, in any float dtype; what is no query has a box of no area.
    """

    names: Sequence[str]
    """What the scores are of; empty where it knows no classes."""

    def boxes(self, queries: Float[Tensor, "images queries width"]) -> Float[Tensor, "images queries 4"]:
        """Return boxes, xyxy in fractions of the generator's input (the letterboxed square), float32."""
        ...

    def scores(self, queries: Float[Tensor, "images queries width"]) -> Float[Tensor, "images queries names"]:
        """Return how much each query looks like what the names say, 0 to 1, each by itself, float32."""
        ...


@runtime_checkable
class FrozenWeights(Protocol):
    """What a generator may offer besides: weights that its package has, so that saved prompts only name them.

    Keep them out of the module's parameters and state dict (buffers with `persistent=False`).
    """

    frozen_weights: Mapping[str, str]
    """SHA-256 by name. It stands in `vpp_config.json`; prompts saved with another one are refused."""


@hookspec
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Describe `model`, or return None if it is not of your family.

    Called for every attach. Two adapters that describe one model are an error that names both, but a Backbone with
    `fallback` gives way. Raise VPPError to refuse a model of your family, with the reason in one sentence: it is shown
    where no other adapter claims the model.
    """


@hookspec
def vpp_generator_names() -> Sequence[str] | None:
    """Return the names that your `vpp_generator` builds: `vpp plugins` lists them, and a mistyped one finds them."""


@hookspec(firstresult=True)
def vpp_generator(name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
    """Build the query generator called `name`, or return None if it is not yours.

    The module maps images `[images, 3, height, width]` and a mask (True on image) or None to
    `[images, num_queries, width]`, and has the width as attribute `width`. Where its queries look somewhere, let it be
    a BoxedQueries too; where its package has weights that never learn, a FrozenWeights. Raise VPPError for options that
    do not fit.
    """


@hookspec(firstresult=True)
def vpp_converter(folder: Path) -> Converter | None:
    """Return what brings the checkpoint in `folder` into transformers' layout, or None if its layout is not yours.

    For models that were trained with Visual Position Prompts elsewhere. `vpp convert` calls it.
    """


@hookspec(firstresult=True)
def vpp_box_format(name: str) -> BoxCodec | None:
    """Return the codec of the box format called `name`, or None if it is not yours.

    A Backbone's `box_format` names it. The built-in formats keep their names.
    """


@hookspec(firstresult=True)
def vpp_loss(name: str, model: nn.Module, processor: Any) -> nn.Module | None:
    """Build the training loss called `name`, or return None if it is not yours.

    It is a `vpp_plugins.train.losses.AuxiliaryLoss` on an attached model; a recipe's `losses` name it. Raise VPPError
    for a model that it cannot work on. The built-in losses keep their names.
    """
