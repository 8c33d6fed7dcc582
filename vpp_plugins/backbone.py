"""Moved to `vpp_plugins.plugins`; this path works until 0.2."""

from vpp_plugins.plugins import Backbone, PixelLayout, keep_processor

__all__ = ["Backbone", "PixelLayout", "keep_processor"]
