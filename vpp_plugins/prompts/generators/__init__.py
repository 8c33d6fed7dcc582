"""Generators of object queries: modules that map pictures and an optional mask to `[images, num_queries, width]`.

A generator has the attributes `width` and `num_queries`, and takes ImageNet-normalised `[images, 3, height, width]` and
a mask, True on picture, or None. Plugins add generators through the hook `vpp_generator`.
"""

from vpp_plugins.prompts.generators.detection_heads import DetectionHeads, Detections
from vpp_plugins.prompts.generators.detr import DETR, build_detr
from vpp_plugins.prompts.generators.detr_weights import load_detr_weights

__all__ = ["DETR", "DetectionHeads", "Detections", "build_detr", "load_detr_weights"]
