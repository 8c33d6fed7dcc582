"""Pages: files that open from the disk without a server or a network, all from one writer and one style sheet."""

from vpp_plugins.report.page import COLOURS, TRUTH, curve, image_url, write_page

__all__ = ["COLOURS", "TRUTH", "curve", "image_url", "write_page"]
