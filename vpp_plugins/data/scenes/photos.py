"""The committed real photographs: 29 images with 50 expressions whose boxes were drawn by hand.

All are in the public domain or CC0; author, licence and source of each stand in `real_photos/refs.json`.
"""

import json
from pathlib import Path

from vpp_plugins.data.scenes.expressions import Expression
from vpp_plugins.data.scenes.generator import Scene
from vpp_plugins.images import load_image

FOLDER = Path(__file__).with_name("real_photos")
"""Where the photographs and refs.json lie."""


def load_real_photos() -> list[Scene]:
    """All photographs in the order of refs.json. Every expression's kind is "photo"; objects are not listed."""
    samples = []
    for photo in json.loads((FOLDER / "refs.json").read_text(encoding="utf-8")):
        image = load_image(FOLDER / photo["file"])
        expressions = []
        for ref in photo["refs"]:
            left, top, right, bottom = ref["box_xyxy"]
            expressions.append(Expression(ref["expr"], (left, top, right, bottom), "photo", None))
        key = Path(photo["file"]).stem
        samples.append(Scene(key, image, image.width, image.height, (), tuple(expressions)))
    return samples
