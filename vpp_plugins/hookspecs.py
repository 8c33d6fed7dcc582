"""The hooks that a plugin may implement. A plugin is a module named under the entry-point group `vpp_plugins`."""

from collections.abc import Mapping
from typing import Any

import pluggy
from torch import nn

from vpp_plugins.backbone import Backbone

PROJECT = "vpp_plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def vpp_adapter(model: nn.Module) -> Backbone | None:
    """Describe `model`, or return None if it is not of your family.

    Called for every attach; two adapters that describe one model are an error that names both.
    """


@hookspec(firstresult=True)
def vpp_generator(name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
    """Build the query generator called `name`, or return None if it is not yours.

    The module maps pictures `[images, 3, height, width]` and a mask (True on picture) or None to
    `[images, num_queries, width]`, and has the width as attribute `width`.
    """
