"""Prompts outside of Python: a global prompt baked into an image processor, a local prompt as an ONNX graph."""

from vpp_plugins.export.apply_axes import apply_axes, load_axes
from vpp_plugins.export.bake import Baked, BakedScores, bake, drop_local_prompt, score_baked
from vpp_plugins.export.onnx import export_local_prompt

__all__ = [
    "Baked",
    "BakedScores",
    "apply_axes",
    "bake",
    "drop_local_prompt",
    "export_local_prompt",
    "load_axes",
    "score_baked",
]
