"""The conformance suite for adapters: `check_adapter(model, processor)` says which promises of VPP an adapter breaks.

Call it in the tests of your adapter's package, with a host as small as you can build it.
"""

from vpp_plugins.testing.check import BrokenPromises, Report, check_adapter
from vpp_plugins.testing.coverage import model_coverage, recorded_version
from vpp_plugins.testing.fixture import TINY_DETR, ToyGenerator, sample_pixels, toy_generator
from vpp_plugins.testing.promises import assert_same, fingerprint

__all__ = [
    "TINY_DETR",
    "BrokenPromises",
    "Report",
    "ToyGenerator",
    "assert_same",
    "check_adapter",
    "fingerprint",
    "model_coverage",
    "recorded_version",
    "sample_pixels",
    "toy_generator",
]
