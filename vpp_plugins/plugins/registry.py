"""Find plugins and ask them: the only file that calls hooks."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy
from torch import nn

from vpp_plugins.boxes import BOX_CODECS, BoxCodec, codec
from vpp_plugins.errors import VPPError, named_extras, nearest
from vpp_plugins.plugins import hookspecs
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.plugins.hookspecs import PROJECT, Converter, hookimpl


class BrokenPluginWarning(UserWarning):
    """An installed plugin could not be imported, and is left out."""


GENERATORS = ("detr", "hf_detector")


class _BuiltIn:
    """The generators that come with the core."""

    @hookimpl
    def vpp_generator_names(self) -> Sequence[str]:
        return GENERATORS

    @hookimpl(tryfirst=True)  # or a stranger's "detr" would take the name unseen: pluggy asks the latest first
    def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
        if name not in GENERATORS:
            return None
        from vpp_plugins.prompts.generators import build_detr, build_hf_detector

        build = build_detr if name == "detr" else build_hf_detector
        try:
            return build(num_queries=num_queries, **options)
        except TypeError as error:
            raise VPPError(f"local_vpp.generator_options do not fit the generator '{name}': {error}.") from None


@functools.cache
def _loaded() -> tuple[pluggy.PluginManager, dict[str, str]]:
    """Load every installed plugin, once; return the manager, and why each of the broken ones was left out."""
    pm, broken_ones = pluggy.PluginManager(PROJECT), {}
    pm.add_hookspecs(hookspecs)
    pm.register(_BuiltIn(), "built-in")
    for entry in sorted(metadata.entry_points(group=PROJECT), key=lambda entry: entry.name):
        try:
            if not pm.has_plugin(entry.name):
                pm.register(entry.load(), entry.name)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises must not take the library down
            if pm.has_plugin(entry.name):  # pluggy keeps what it has found to be of a wrong shape
                pm.unregister(name=entry.name)
            broken_ones[entry.name] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the plugin '{entry.name}' ({entry.value}) could not be loaded and is left out: "
                f"{broken_ones[entry.name]}",
                BrokenPluginWarning,
                stacklevel=3,
            )
    return pm, broken_ones


def manager() -> pluggy.PluginManager:
    """Return the plugin manager, with every installed plugin loaded once; a broken one is warned about and left out."""
    return _loaded()[0]


def broken() -> dict[str, str]:
    """Return the installed plugins that could not be loaded, by name, with the reason."""
    return dict(_loaded()[1])


def adapters() -> dict[str, Any]:
    """Return the plugins that offer an adapter, by name."""
    return {impl.plugin_name: impl.plugin for impl in manager().hook.vpp_adapter.get_hookimpls()}


def describe(model: nn.Module, adapter: str | Backbone | None = None) -> Backbone:
    """Return the one description of `model`; raises VPPError when no adapter, or more than one, claims it.

    Fallback adapters count only where no other claims. Where nobody claims, an adapter's own refusal is what is raised.
    """
    if isinstance(adapter, Backbone):
        return adapter
    installed, kind = adapters(), type(model).__name__
    if adapter is not None:
        if adapter not in installed:
            hint = nearest(adapter, installed)
            raise VPPError(f"no adapter is called '{adapter}'.{hint} Installed: {_listed(installed)}.")
        claimed = _claim(installed[adapter], model)
        if claimed is None:
            raise VPPError(f"the adapter '{adapter}' does not claim {kind}. Installed: {_listed(installed)}.")
        return claimed
    claims, refusals = _claims(installed, model)
    if not claims and refusals:
        raise refusals[0]
    if not claims:
        raise VPPError(
            f"no adapter claims {kind}: installed are {_listed(installed)}. Install a plugin for it, or pass "
            "adapter=Backbone(...) that describes it."
        )
    firm = {name: backbone for name, backbone in claims.items() if not backbone.fallback} or claims
    if len(firm) > 1:
        names = " and ".join(f"'{name}'" for name in sorted(firm))
        raise VPPError(f"the adapters {names} all claim {kind}: pass adapter=NAME to choose one.")
    return firm.popitem()[1]


def box_codec(name: str) -> BoxCodec:
    """Return the codec of a box format, built in or a plugin's; raises VPPError where nobody knows the name."""
    if name in BOX_CODECS:
        return codec(name)
    return manager().hook.vpp_box_format(name=name) or codec(name)  # the table's own error names the nearest


def build_generator(name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a query generator by name; raises VPPError when no plugin knows it."""
    with named_extras():
        generator = manager().hook.vpp_generator(name=name, num_queries=num_queries, options=options)
    if generator is None:
        known = generators()
        raise VPPError(
            f"no plugin builds the generator '{name}'.{nearest(name, known)} Known: {', '.join(known)}; others come as "
            "plugins (`vpp plugins`)."
        )
    return generator


def generators() -> dict[str, str]:
    """Return the names of the generators of the local prompt, each with the plugin that brings it.

    A plugin that does not say its generators' names stands for them by its own, in brackets.
    """
    bringing = {one.plugin_name for one in manager().hook.vpp_generator.get_hookimpls()}
    named = manager().hook.vpp_generator_names.get_hookimpls()
    said: dict[str, Any] = {one.plugin_name: one.function() for one in named}
    found = {name: plugin for plugin, names in said.items() for name in names or ()}
    return dict(sorted(found.items())) | {f"({plugin})": plugin for plugin in sorted(bringing - {*found.values()})}


def build_loss(name: str, model: nn.Module, processor: Any) -> nn.Module | None:
    """Build a plugin's training loss by name, or return None where no plugin knows it."""
    return manager().hook.vpp_loss(name=name, model=model, processor=processor)


def brings_losses() -> bool:
    """Return whether any plugin brings training losses."""
    return bool(manager().hook.vpp_loss.get_hookimpls())


def converter(folder: Path) -> Converter:
    """Return what converts the checkpoint in a folder; raises VPPError when no plugin knows its layout."""
    if not folder.is_dir():
        raise VPPError(f"'{folder}' is no folder here: give the folder of a downloaded checkpoint.")
    found: Converter | None = manager().hook.vpp_converter(folder=folder)
    if found is None:
        known = {impl.plugin_name: impl.plugin for impl in manager().hook.vpp_converter.get_hookimpls()}
        raise VPPError(
            f"no plugin converts the checkpoint in '{folder}'. Installed converters: {_listed(known)}. A model that "
            "from_pretrained loads needs no conversion: attach_vpp(model) takes it as it is."
        )
    return found


def _claim(plugin: Any, model: nn.Module) -> Backbone | None:
    others = [other for other in manager().get_plugins() if other is not plugin]
    with named_extras():
        found: list[Backbone] = manager().subset_hook_caller("vpp_adapter", others)(model=model)
    return found[0] if found else None


def _claims(installed: Mapping[str, Any], model: nn.Module) -> tuple[dict[str, Backbone], list[VPPError]]:
    """Return what each adapter claims, and what those say that refuse.

    One that fails has perhaps nothing to do with the model: it must not stand in the others' way.
    """
    claims, refusals = {}, []
    for name, plugin in installed.items():
        try:
            backbone = _claim(plugin, model)
        except VPPError as refusal:
            refusals.append(refusal)
        except Exception as error:  # noqa: BLE001 - see above
            warnings.warn(
                f"the adapter '{name}' failed on {type(model).__name__} and is left out: {type(error).__name__}: "
                f"{error}. attach_vpp(model, adapter='{name}') shows where.",
                BrokenPluginWarning,
                stacklevel=4,
            )
        else:
            if backbone is not None:
                claims[name] = backbone
    return claims, refusals


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
