"""`VPPProcessor`: the host's processor, with placeholders, the detector's images and tile boxes."""

from vpp_plugins.processor.checks import normalisation
from vpp_plugins.processor.placeholders import image_marker
from vpp_plugins.processor.processor import VPPProcessor

__all__ = ["VPPProcessor", "image_marker", "normalisation"]
