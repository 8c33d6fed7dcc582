"""`VPPProcessor`: the host's processor, with placeholders, the detector's images and tile boxes."""

from vpp_plugins.processor.checks import check_pair, check_processor, image_marker
from vpp_plugins.processor.processor import VPPProcessor, hosts_processor, normalisation

__all__ = ["VPPProcessor", "check_pair", "check_processor", "hosts_processor", "image_marker", "normalisation"]
