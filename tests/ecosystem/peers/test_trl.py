"""TRL in the shape of its own examples: SFT with LoRA on images, and GRPO with a reward of one's own."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel

from tests.families import attached_family
from tests.tiny import attached, image, tiny_llava
from vpp_plugins import vpp_of
from vpp_plugins.train.grpo import VPPGRPOTrainer

trl = pytest.importorskip("trl")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("toy"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

QUIET = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "max_steps": 2, "learning_rate": 1e-2}
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


def test_sft_with_lora_and_evaluation(tmp_path: Path) -> None:
    """As its examples/scripts/sft_vlm.py: columns `images` and `messages`, LoRA by the trainer, an eval set."""
    model, processor = attached_family("qwen2_5_vl")
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where is the cup"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "the red cup ."}]},
    ]
    rows = datasets.Dataset.from_list([{"images": [image(seed)], "messages": chat} for seed in range(4)])
    before = {name: value.clone() for name, value in model.vpp.state_dict().items()}
    trainer = trl.SFTTrainer(
        model=model.train(),
        args=trl.SFTConfig(
            output_dir=str(tmp_path), max_length=None, eval_strategy="steps", eval_steps=2, save_steps=2, **QUIET
        ),
        train_dataset=rows,
        eval_dataset=rows.select([0, 1]),
        peft_config=LoraConfig(r=2, target_modules="all-linear", modules_to_save=["vpp"]),
        processing_class=processor.processor,
        data_collator=trl.trainer.sft_trainer.DataCollatorForVisionLanguageModeling(processor=processor),
    )

    trainer.train()

    after = vpp_of(trainer.model).state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    assert any("eval_loss" in line for line in trainer.state.log_history)
    again = PeftModel.from_pretrained(attached_family("qwen2_5_vl")[0], tmp_path / "checkpoint-2")
    assert all(torch.equal(value, after[name]) for name, value in vpp_of(again).state_dict().items())


def test_grpo_with_a_reward_of_ones_own(tmp_path: Path) -> None:
    """As its examples/scripts/grpo_vlm.py: columns `prompt` and `image`, and a function of the completions."""
    model, processor = attached(tiny_llava().train())
    processor.chat_template = TEMPLATE
    prompt = [{"role": "user", "content": "where is the cup"}]
    seen: list[int] = []

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        seen.append(len(completions))
        return [float(number) for number in range(len(completions))]

    trainer = VPPGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=reward,
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
            gradient_checkpointing=False, dataloader_pin_memory=False, save_steps=2, **QUIET,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt, "image": image(seed)} for seed in range(4)]),
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.vpp.state_dict().items()}

    trainer.train()

    assert seen == [4, 4]
    assert all(not torch.equal(value, before[name]) for name, value in model.vpp.state_dict().items())
    assert (tmp_path / "checkpoint-2/vpp.safetensors").exists()
