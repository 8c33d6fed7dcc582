"""What VPP-LLaVA's own code gave on a tiny checkpoint: text, boxes, learning rates and tensors, recorded once.

Recorded from github.com/WayneTomas/VPP-LLaVA (Apache-2.0) at commit facddeb, with torch 2.11 and transformers 4.37.2,
float32, CPU.
"""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def reference(name: str) -> Any:
    """Return a recorded table: unpad, padbox, letterbox, text, param_groups or grad_norms."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def reference_keys(size: str) -> dict[str, tuple[int, ...]]:
    """Return every key and shape of the published layout; `size` is 7b or 13b. A line's {0-31} stands for 32 keys."""
    shapes = {}
    for line in (FOLDER / f"keys_{size}.txt").read_text().splitlines():
        pattern, shape = line.split()
        for key in _expand(pattern):
            shapes[key] = tuple(map(int, shape.split("x")))
    return shapes


def published_settings(size: str) -> dict[str, Any]:
    """Return what the config.json of 7b or 13b says of the language model and the vision tower."""
    hidden, intermediate, layers = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}[size]
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "num_attention_heads": hidden // 128,
        "num_hidden_layers": layers,
        "num_key_value_heads": hidden // 128,
        "vocab_size": 32000,
    }


def _expand(pattern: str) -> list[str]:
    found = re.search(r"\{(\d+)-(\d+)\}", pattern)
    if found is None:
        return [pattern]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [key for n in numbers for key in _expand(f"{pattern[: found.start()]}{n}{pattern[found.end() :]}")]
