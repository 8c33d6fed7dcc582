"""LLaVA-NeXT and LLaVA-OneVision with VPP: every tile gets its part of the image's axes.

    python examples/families/llava_next.py [CHECKPOINT IMAGE EXPRESSION]

Without a checkpoint a tiny random host stands in: everything runs, and the answer means nothing.
"""

import sys

from tiny_hosts import tiny_host
from transformers import AutoModelForImageTextToText, AutoProcessor

from vpp_plugins import Grounder, VPPProcessor, attach_vpp
from vpp_plugins.data.scenes import FOLDER
from vpp_plugins.images import load_image

checkpoint, image, expression = sys.argv[1:4] if len(sys.argv) > 3 else (None, FOLDER / "farm_animals_dog.jpg", "dog")
image = load_image(image)

if checkpoint is None:
    model, processor = tiny_host("llava_next")  # or "llava_onevision"
else:
    # --8<-- [start:load]
    # checkpoint: a folder or hub id, such as "llava-hf/llava-v1.6-vicuna-7b-hf"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", device_map="auto")
    processor = AutoProcessor.from_pretrained(checkpoint)
    # --8<-- [end:load]
# --8<-- [start:attach]
attach_vpp(model)
processor = VPPProcessor(processor, model)
# --8<-- [end:attach]

# --8<-- [start:tiles]
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"Where is the {expression}?"}]}]
inputs = processor(
    images=image, text=processor.apply_chat_template(chat, add_generation_prompt=True), return_tensors="pt"
)
print("the whole view and the tiles, in units of the padded square:")
for left, top, right, bottom in (inputs["vpp_tile_boxes"] / 1e6).tolist():  # millionths
    print(f"  x {left:z.2f} to {right:z.2f}, y {top:z.2f} to {bottom:z.2f}")
# --8<-- [end:tiles]

# --8<-- [start:ground]
grounding = Grounder(model, processor, max_new_tokens=24)(image, expression)
print(f"the answer is {grounding.status}: {grounding.boxes} {grounding.text!r}")
# --8<-- [end:ground]
