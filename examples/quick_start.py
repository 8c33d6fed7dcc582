"""Attach VPP to a multimodal LLM, ask where something is, take it off again.

Runs offline on a CPU, with the pocket model that ships with the library:

    python examples/quick_start.py
"""

import torch

from vpp_plugins import Grounder, VPPProcessor, attach_vpp, detach_vpp, is_attached, save_vpp, vpp_disabled
from vpp_plugins.data.scenes import FOLDER
from vpp_plugins.pocket import load_pocket

# --8<-- [start:ground]
image, expression = FOLDER / "farm_animals_chicken.jpg", "the leftmost chicken"  # or a path of yours
model, processor = load_pocket()  # a small LLaVA with trained prompts, and its VPPProcessor
grounding = Grounder(model, processor)(image, expression)
print([[round(side) for side in box] for box in grounding.boxes])  # [[15, 44, 84, 193]]
print(grounding.status, grounding.text)  # ok: the answer could be read, be it right or wrong
grounding.draw().save("boxed.png")
# --8<-- [end:ground]

# --8<-- [start:disabled]
with vpp_disabled(model):  # the same weights, without the prompts
    print("the host alone:", Grounder(model, processor)(image, expression).boxes)
# --8<-- [end:disabled]

# --8<-- [start:save]
save_vpp(model, "my_vpp")  # the prompts alone: vpp_config.json and vpp.safetensors
# --8<-- [end:save]

# --8<-- [start:attach]
# Another day `from_pretrained` gives the host and its processor. It has to be the host that learned with these prompts.
host, host_processor = detach_vpp(model), processor.processor
attach_vpp(host, "my_vpp")  # the same object, now with prompts; attach_vpp(host) would start untrained ones
vpp_processor = VPPProcessor(host_processor, host)
question = "Please provide the bounding box coordinate of the region this sentence describes:"  # LLaVA's words for it
inputs = vpp_processor(
    images=grounding.image, text=f"USER: <image>\n{question} {expression}. ASSISTANT:", return_tensors="pt"
)
print({name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, torch.Tensor)})
answer = host.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
print(vpp_processor.batch_decode(answer, skip_special_tokens=True))  # ['[0.04, 0.28, 0.22, 0.67]']
# --8<-- [end:attach]

# --8<-- [start:detach]
detach_vpp(host)  # bit for bit the host that it was
print("attached:", is_attached(host))
# --8<-- [end:detach]
