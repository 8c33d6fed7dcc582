"""Moved to `vpp_plugins.plugins.layouts`; this path works until 0.2."""

from vpp_plugins.plugins.layouts import Padded, PaddedPatches, Patches, blocks, patch_strip, planes, tiles

__all__ = ["Padded", "PaddedPatches", "Patches", "blocks", "patch_strip", "planes", "tiles"]
