"""Generators of object queries: modules that map images and an optional mask to `[images, num_queries, width]`.

A generator has the attributes `width` and `num_queries`, and takes ImageNet-normalised `[images, 3, height, width]` and
a mask, True on image, or None. Plugins add generators through the hook `vpp_generator`.
"""

import os

from torch import nn

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.generators.detr import DETR, build_detr
from vpp_plugins.prompts.generators.detr_transformer import MultiheadAttention
from vpp_plugins.prompts.generators.detr_weights import VPP_LLAVA_PREFIX, load_detr_weights, our_name
from vpp_plugins.prompts.generators.frozen_norm import FrozenBatchNorm2d
from vpp_plugins.prompts.generators.heads import DetectionHeads, Detections
from vpp_plugins.prompts.generators.hf_detector import (
    HFDetector,
    build_hf_detector,
    configuration_values,
    load_hf_weights,
)


def load_weights(generator: nn.Module, source: str | os.PathLike[str]) -> None:
    """Load published weights into a built-in generator; raises VPPError, and changes nothing, where they do not fit."""
    if isinstance(generator, DETR):
        load_detr_weights(generator, source)
    elif isinstance(generator, HFDetector):
        load_hf_weights(generator, source)
    else:
        raise VPPError(
            f"local_vpp.weights are for built-in generators, and {type(generator).__name__} is a plugin's: leave it "
            "None, and let generator_options say what the generator starts from."
        )


__all__ = [
    "DETR",
    "VPP_LLAVA_PREFIX",
    "DetectionHeads",
    "Detections",
    "FrozenBatchNorm2d",
    "HFDetector",
    "MultiheadAttention",
    "build_detr",
    "build_hf_detector",
    "configuration_values",
    "load_detr_weights",
    "load_hf_weights",
    "load_weights",
    "our_name",
]
