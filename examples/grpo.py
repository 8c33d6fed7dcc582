"""GRPO with the IoU reward through TRL: the pocket model, the photographs that ship with the library, a few CPU steps.

    pip install trl
    python examples/grpo.py --steps 3

With another model: load it, attach_vpp, make its VPPProcessor, and name its box format in `rewards`. The pocket model
takes some seconds a step on one CPU core; three steps show that everything works together, and teach nothing yet.
"""

import argparse
from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from vpp_plugins.boxes import codec
from vpp_plugins.data.scenes import load_real_photos
from vpp_plugins.pocket import load_pocket
from vpp_plugins.train import VPPGRPOTrainer
from vpp_plugins.train.rewards import rewards

BOX_FORMAT = "llava"


def questions() -> Dataset:
    """One row per expression: the question as a chat, the image, and what the rewards need."""
    rows: dict[str, list[Any]] = {"prompt": [], "image": [], "boxes": [], "size_hw": []}
    for photo in load_real_photos():
        for expression in photo.expressions:
            question = codec(BOX_FORMAT).prompt(expression.text)
            rows["prompt"].append([{"role": "user", "content": question}])
            rows["image"].append(photo.image)
            rows["boxes"].append([expression.box_xyxy])
            rows["size_hw"].append([photo.height, photo.width])
    return Dataset.from_dict(rows)


def main(steps: int, out: str) -> None:
    model, processor = load_pocket()
    reward = rewards(BOX_FORMAT, tokenizer=processor.tokenizer)
    settings = GRPOConfig(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=24,
        learning_rate=1e-5,
        reward_weights=[1.0, 0.2],
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
    )
    trainer = VPPGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[reward.iou, reward.format],
        args=settings,
        train_dataset=questions(),
    )
    trainer.train()
    trainer.save_model(out)
    print(reward.iou.explanation())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", default="out/grpo")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.out)
