"""The pocket model: a LLaVA with a language model of about a million parameters, with and without VPP.

- `vision.py`: the vision tower, a frozen EfficientNet-Lite0 with positions.
- `tokenizer.py`: byte-level BPE whose coordinates are single tokens.
- `build.py`: an untrained model and its processor.
- `untrained.py`: that model with its prompts, ImageNet's backbone and COCO's detector, as training begins.
- `smollm2.py`: a pretrained language model in its place.
- `weights.py`, `smollm2_weights.py`: saving and loading the shipped weights of either.
- `load.py`: loading either by name.

Recipes in `examples/recipes/` train them, and `examples/pocket.py` makes the shipped weights of what was trained.
"""

from vpp_plugins.errors import named_extras

with named_extras():
    from vpp_plugins.pocket.build import build_pocket, load_imagenet_backbone
    from vpp_plugins.pocket.load import load_pocket
    from vpp_plugins.pocket.smollm2 import build_smollm2, fetch_smollm2
    from vpp_plugins.pocket.smollm2_weights import SMOLLM2_FOLDER, save_smollm2
    from vpp_plugins.pocket.tokenizer import (
        AXES_SENTENCE,
        COORDINATES,
        GROUNDING_QUESTION,
        IMAGE_TOKEN,
        REGION_QUESTION,
        build_tokenizer,
    )
    from vpp_plugins.pocket.untrained import pocket_config, start_queries, untrained_pocket, written_boxes
    from vpp_plugins.pocket.vision import COARSE_CHANNELS, TOKEN_WIDTH, create_backbone, merge_maps, register_pocket
    from vpp_plugins.pocket.weights import FOLDER, save_pocket


__all__ = [
    "AXES_SENTENCE",
    "COARSE_CHANNELS",
    "COORDINATES",
    "FOLDER",
    "GROUNDING_QUESTION",
    "IMAGE_TOKEN",
    "REGION_QUESTION",
    "SMOLLM2_FOLDER",
    "TOKEN_WIDTH",
    "build_pocket",
    "build_smollm2",
    "build_tokenizer",
    "create_backbone",
    "fetch_smollm2",
    "load_imagenet_backbone",
    "load_pocket",
    "merge_maps",
    "pocket_config",
    "register_pocket",
    "save_pocket",
    "save_smollm2",
    "start_queries",
    "untrained_pocket",
    "written_boxes",
]
