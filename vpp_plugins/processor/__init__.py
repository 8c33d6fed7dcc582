"""`VPPProcessor`: the host's processor, with placeholders, the detector's images and tile boxes."""

from vpp_plugins.processor.checks import image_marker, normalisation
from vpp_plugins.processor.processor import VPPProcessor

__all__ = ["VPPProcessor", "image_marker", "normalisation"]
