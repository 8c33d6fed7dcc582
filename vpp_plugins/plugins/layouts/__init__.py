"""How vision encoders arrange pixels: each layout lays the axes over one arrangement of them.

A layout is called as `layout(pixels, overlay, windows, call)`, see `vpp_plugins.plugins.backbone.PixelLayout`; all are
module-level functions or frozen dataclasses, so that attached models pickle.
"""

from vpp_plugins.plugins.layouts.patches import PaddedPatches, Patches, patch_strip
from vpp_plugins.plugins.layouts.planes import Padded, blocks, planes, tiles

__all__ = ["Padded", "PaddedPatches", "Patches", "blocks", "patch_strip", "planes", "tiles"]
