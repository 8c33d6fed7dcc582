"""Qwen-VL with VPP: box text by generation, LoRA beside the prompts, one training step.

    python examples/families/qwen_vl.py [CHECKPOINT IMAGE EXPRESSION]

Without a checkpoint a tiny random Qwen3-VL stands in: everything runs, and the answer means nothing.
"""

import sys

import peft
import torch
from tiny_hosts import tiny_host
from transformers import AutoModelForImageTextToText, AutoProcessor

from vpp_plugins import Grounder, VPPProcessor, attach_vpp, save_vpp
from vpp_plugins.data.scenes import FOLDER
from vpp_plugins.images import load_image
from vpp_plugins.train import lora_targets

checkpoint, image, expression = sys.argv[1:4] if len(sys.argv) > 3 else (None, FOLDER / "farm_animals_dog.jpg", "dog")
image = load_image(image)

if checkpoint is None:
    model, processor = tiny_host("qwen3_vl")  # or "qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"
else:
    # --8<-- [start:load]
    # checkpoint: a folder or hub id, such as "Qwen/Qwen2.5-VL-7B-Instruct"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", device_map="auto")
    processor = AutoProcessor.from_pretrained(checkpoint)
    # --8<-- [end:load]
# --8<-- [start:attach]
attach_vpp(model)  # Qwen's defaults: axes in steps of 100, from 0 to 1000
processor = VPPProcessor(processor, model)
grounder = Grounder(model, processor, max_new_tokens=24)  # knows the generation's prompt and box text
# --8<-- [end:attach]

# --8<-- [start:boxes]
box = (image.width / 4, image.height / 4, image.width / 2, image.height / 2)
(meta,) = processor.image_metas(image)
answer = grounder.codec.encode([box], meta, labels=[expression])
print(f"{grounder.codec.family}: {answer}")
# --8<-- [end:boxes]

# --8<-- [start:lora]
layers = lora_targets(model, scope="llm")  # the language model's linear layers; "vision", "projector", "all"
trained = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=layers, modules_to_save=["vpp"]))
trained.print_trainable_parameters()
# --8<-- [end:lora]

# --8<-- [start:train]
question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": grounder.codec.prompt(expression)}]}
reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
asked = processor.apply_chat_template([question], add_generation_prompt=True)
whole = processor.apply_chat_template([question, reply])
inputs = processor(images=image, text=whole, return_tensors="pt").to(model.device)
labels = inputs["input_ids"].clone()
labels[:, : processor(images=image, text=asked, return_tensors="pt")["input_ids"].shape[1]] = -100

optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-4)
loss = trained(**inputs, labels=labels).loss
loss.backward()
optimizer.step()
print(f"loss {loss.item():.2f}")
save_vpp(trained, "qwen_vpp")  # the prompts, through PEFT's wrapper; trained.save_pretrained writes the LoRA
# --8<-- [end:train]

# --8<-- [start:ground]
grounding = grounder(image, expression)
print(f"the answer is {grounding.status}: {grounding.boxes} {grounding.text!r}")
# --8<-- [end:ground]
