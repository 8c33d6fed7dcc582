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
print([[round(side) for side in box] for box in grounding.boxes])
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
host, host_processor = load_pocket(vpp=False)  # any LLaVA of transformers does
attach_vpp(host, "my_vpp")  # the same object, now with prompts; attach_vpp(host) would start untrained ones
host_processor = VPPProcessor(host_processor, host)
inputs = host_processor(
    images=grounding.image, text=f"USER: <image>\nWhere is {expression}? ASSISTANT:", return_tensors="pt"
)
print({name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, torch.Tensor)})
print(host_processor.batch_decode(host.generate(**inputs, max_new_tokens=12), skip_special_tokens=True))
# --8<-- [end:attach]

# --8<-- [start:detach]
detach_vpp(host)  # bit for bit the host that it was
print("attached:", is_attached(host))
# --8<-- [end:detach]
