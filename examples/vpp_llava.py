"""VPP-LLaVA: load a checkpoint, ask it where something is, and take one training step at the reference's rates.

    python examples/vpp_llava.py CHECKPOINT IMAGE EXPRESSION

CHECKPOINT is a folder or hub id, as VPP-LLaVA's own code saved it or as `vpp convert` wrote it.
"""

import sys
import tomllib
from pathlib import Path

import torch

from vpp_adapters.vpp_llava import load_vpp_llava
from vpp_adapters.vpp_llava.vicuna import IMAGE, with_axis_sentence
from vpp_plugins import Grounder, attach_vpp, detach_vpp
from vpp_plugins.plugins import describe
from vpp_plugins.train import choose_parts, label_answers, parameter_groups, render_chat

checkpoint, image, expression = sys.argv[1:4]

# --8<-- [start:load]
model, processor = load_vpp_llava(checkpoint, dtype=torch.float32)  # None keeps the checkpoint's bfloat16
# --8<-- [end:load]

# --8<-- [start:ground]
grounding = Grounder(model, processor)(image, expression)
print(grounding.boxes, grounding.status, grounding.text)
# --8<-- [end:ground]

# --8<-- [start:labels]
chat = with_axis_sentence(
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"Where is {expression}?"}]},
        {"role": "assistant", "content": "[0.12, 0.25, 0.58, 0.81]"},
    ]
)
rendered = render_chat(processor, chat)
inputs = processor(images=grounding.image, text=rendered.text, return_tensors="pt")
answer = label_answers(inputs["input_ids"][0], rendered, processor.tokenizer, image_token=IMAGE)
print(f"{answer.learned} of {len(answer.labels)} ids are learned")
# --8<-- [end:labels]

# --8<-- [start:groups]
groups = parameter_groups(model, choose_parts("reference"))  # freeze=["vision"] keeps the vision tower as it is
for group in groups:
    print(f"{group['name']:22} {group['lr']:.0e} {sum(p.numel() for p in group['params']):>13,}")
optimizer = torch.optim.AdamW(groups)
model.train()(**inputs, labels=answer.labels[None]).loss.backward()
optimizer.step()
# --8<-- [end:groups]

# --8<-- [start:ablation]
recipe = tomllib.loads(Path(__file__).with_name("recipes").joinpath("ablations/axes-cross.toml").read_text())
host = detach_vpp(model)  # any model that an adapter knows will do
attach_vpp(host, describe(host).defaults.changed(recipe))
print("axes:", host.vpp.config.global_vpp.style)
# --8<-- [end:ablation]
