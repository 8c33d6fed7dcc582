"""Find plugins and ask them: the only file that calls hooks."""

import functools
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import pluggy
from torch import nn

from vpp_plugins import hookspecs
from vpp_plugins.backbone import Backbone
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.hookspecs import PROJECT, hookimpl


class BrokenPluginWarning(UserWarning):
    """An installed plugin could not be imported, and is left out."""


class _BuiltIn:
    """The generators that come with the core."""

    @hookimpl(tryfirst=True)  # or a stranger's "detr" would take the name unseen: pluggy asks the latest first
    def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
        if name != "detr":
            return None
        from vpp_plugins.prompts.generators.detr import build_detr

        try:
            return build_detr(num_queries=num_queries, **options)
        except TypeError as error:
            raise VPPError(f"local_vpp.generator_options do not fit the generator 'detr': {error}.") from None


@functools.cache
def manager() -> pluggy.PluginManager:
    """Return the plugin manager, with every installed plugin loaded once; a broken one is warned about and left out."""
    pm = pluggy.PluginManager(PROJECT)
    pm.add_hookspecs(hookspecs)
    pm.register(_BuiltIn(), "built-in")
    for entry in sorted(metadata.entry_points(group=PROJECT), key=lambda entry: entry.name):
        try:
            if not pm.has_plugin(entry.name):
                pm.register(entry.load(), entry.name)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises must not take the library down
            warnings.warn(
                f"the plugin '{entry.name}' ({entry.value}) could not be loaded and is left out: "
                f"{type(error).__name__}: {error}",
                BrokenPluginWarning,
                stacklevel=2,
            )
    return pm


def adapters() -> dict[str, Any]:
    """Return the plugins that offer an adapter, by name."""
    return {impl.plugin_name: impl.plugin for impl in manager().hook.vpp_adapter.get_hookimpls()}


def describe(model: nn.Module, adapter: str | Backbone | None = None) -> Backbone:
    """Return the one description of `model`; raises VPPError when no adapter, or more than one, claims it."""
    if isinstance(adapter, Backbone):
        return adapter
    installed, kind = adapters(), type(model).__name__
    if adapter is not None:
        if adapter not in installed:
            hint = nearest(adapter, installed)
            raise VPPError(f"no adapter is called '{adapter}'.{hint} Installed: {_listed(installed)}.")
        claimed = _ask(installed[adapter], model)
        if claimed is None:
            raise VPPError(f"the adapter '{adapter}' does not claim {kind}. Installed: {_listed(installed)}.")
        return claimed
    claims = {
        name: backbone for name in installed if (backbone := _ask_safely(name, installed[name], model)) is not None
    }
    if not claims:
        raise VPPError(
            f"no adapter claims {kind}: installed are {_listed(installed)}. Install a plugin for it, or pass "
            "adapter=Backbone(...) that describes it."
        )
    if len(claims) > 1:
        names = " and ".join(f"'{name}'" for name in sorted(claims))
        raise VPPError(f"the adapters {names} all claim {kind}: pass adapter=NAME to choose one.")
    return claims.popitem()[1]


def build_generator(name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a query generator by name; raises VPPError when no plugin knows it."""
    generator = manager().hook.vpp_generator(name=name, num_queries=num_queries, options=options)
    if generator is None:
        raise VPPError(
            f"no plugin builds the generator '{name}'.{nearest(name, ['detr'])} Built in: detr; others come as plugins."
        )
    built: nn.Module = generator
    return built


def _ask(plugin: Any, model: nn.Module) -> Backbone | None:
    others = [other for other in manager().get_plugins() if other is not plugin]
    found: list[Backbone] = manager().subset_hook_caller("vpp_adapter", others)(model=model)
    return found[0] if found else None


def _ask_safely(name: str, plugin: Any, model: nn.Module) -> Backbone | None:
    """Ask an adapter that may have nothing to do with the model: its failure must not stand in the others' way."""
    try:
        return _ask(plugin, model)
    except Exception as error:  # noqa: BLE001 - see above
        warnings.warn(
            f"the adapter '{name}' failed on {type(model).__name__} and is left out: {type(error).__name__}: {error}. "
            f"attach_vpp(model, adapter='{name}') shows where.",
            BrokenPluginWarning,
            stacklevel=4,
        )
        return None


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
