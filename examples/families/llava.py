"""LLaVA-1.5 with VPP: images padded to a square, and boxes measured on it.

    python examples/families/llava.py [CHECKPOINT IMAGE EXPRESSION]

Without a checkpoint a tiny random host stands in: everything runs, and the answer means nothing.
"""

import sys

from tiny_hosts import tiny_host
from transformers import AutoModelForImageTextToText, AutoProcessor

from vpp_plugins import Grounder, VPPProcessor, attach_vpp, detach_vpp
from vpp_plugins.boxes import codec
from vpp_plugins.data.scenes import FOLDER
from vpp_plugins.images import load_image

checkpoint, image, expression = sys.argv[1:4] if len(sys.argv) > 3 else (None, FOLDER / "farm_animals_dog.jpg", "dog")
image = load_image(image)

if checkpoint is None:
    model, processor = tiny_host("llava")
else:
    # --8<-- [start:load]
    # checkpoint: a folder or hub id, such as "llava-hf/llava-1.5-7b-hf"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", device_map="auto")
    processor = AutoProcessor.from_pretrained(checkpoint)
    # --8<-- [end:load]
# --8<-- [start:attach]
attach_vpp(model)  # LLaVA's defaults: axes in steps of 0.1, a DETR of 100 queries, both untrained
processor = VPPProcessor(processor, model)  # logs that images are padded to a square from here on
# --8<-- [end:attach]

# --8<-- [start:boxes]
llava, (meta,) = codec("llava"), processor.image_metas(image)
text = llava.encode([(0, 0, image.width, image.height)], meta)
print(f"all of an image of {image.width} x {image.height} pixels, as LLaVA writes it: {text}")
print("and back, in pixels of the image:", llava.decode(text, meta).boxes_xyxy_px)
# --8<-- [end:boxes]

# --8<-- [start:ground]
grounding = Grounder(model, processor, max_new_tokens=24)(image, expression)
print(f"the answer is {grounding.status}: {grounding.boxes} {grounding.text!r}")
detach_vpp(model)  # bit for bit the host that it was
# --8<-- [end:ground]
