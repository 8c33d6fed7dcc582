"""Plugins: the hooks, who claims a model, and what an adapter says of it."""

from vpp_plugins.boxes import BOX_CODECS
from vpp_plugins.plugins.backbone import Backbone, PixelLayout, keep_processor
from vpp_plugins.plugins.hookspecs import PROJECT, BoxedQueries, Converter, FrozenWeights, hookimpl
from vpp_plugins.plugins.registry import (
    GENERATORS,
    BrokenPluginWarning,
    adapters,
    box_codec,
    brings_losses,
    broken,
    build_generator,
    build_loss,
    converter,
    describe,
    generators,
    manager,
)

__all__ = [
    "BOX_CODECS",
    "GENERATORS",
    "PROJECT",
    "Backbone",
    "BoxedQueries",
    "BrokenPluginWarning",
    "Converter",
    "FrozenWeights",
    "PixelLayout",
    "adapters",
    "box_codec",
    "brings_losses",
    "broken",
    "build_generator",
    "build_loss",
    "converter",
    "describe",
    "generators",
    "hookimpl",
    "keep_processor",
    "manager",
]
