"""The hooks that a plugin may implement. A plugin is a module named under the entry-point group `vpp_plugins`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pluggy
import torch
from torch import nn

from vpp_plugins.boxes import BoxCodec
from vpp_plugins.plugins.backbone import Backbone

PROJECT = "vpp_plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Converter = Callable[[Path, Path, torch.dtype | None], None]
"""Called with a checkpoint's folder, a new folder, and the dtype to write, None for the checkpoint's own. Writes what
`from_pretrained` and `attach_vpp(model, folder)` load, whole or not at all."""


@hookspec
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Describe `model`, or return None if it is not of your family.

    Called for every attach. Two adapters that describe one model are an error that names both, but a Backbone with
    `fallback` gives way. Raise VPPError to refuse a model of your family, with the reason in one sentence: it is shown
    where no other adapter claims the model.
    """


@hookspec(firstresult=True)
def vpp_generator(name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
    """Build the query generator called `name`, or return None if it is not yours.

    The module maps images `[images, 3, height, width]` and a mask (True on image) or None to
    `[images, num_queries, width]`, and has the width as attribute `width`.
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
