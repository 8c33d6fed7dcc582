"""The pocket model: a LLaVA of about 8 million parameters that grounds expressions, with and without VPP.

- `vision.py`: the vision tower, a frozen EfficientNet-Lite0 with positions.
- `tokenizer.py`: byte-level BPE whose coordinates are single tokens.
- `build.py`: an untrained model and its processor.
- `untrained.py`: that model with its prompts and ImageNet's backbone, as training begins.
- `packing.py`: many questions about one picture in one training sequence.
- `weights.py`: saving and loading the shipped weights.

It was trained by the scripts in `examples/pocket`.
"""

from vpp_plugins.pocket.build import build_pocket
from vpp_plugins.pocket.tokenizer import build_tokenizer
from vpp_plugins.pocket.untrained import pocket_config, untrained_pocket
from vpp_plugins.pocket.vision import register_pocket
from vpp_plugins.pocket.weights import load_detection_heads, load_pocket, save_pocket

__all__ = [
    "build_pocket",
    "build_tokenizer",
    "load_detection_heads",
    "load_pocket",
    "pocket_config",
    "register_pocket",
    "save_pocket",
    "untrained_pocket",
]
