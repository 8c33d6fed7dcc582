"""GRPO with TRL: the prompts get the images of the sample at hand, and learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import attached, image, tiny_llava
from vpp_plugins import VPPConfig, VPPError
from vpp_plugins.images import letterbox

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from vpp_plugins.train.grpo import VPPGRPOTrainer  # noqa: E402
from vpp_plugins.train.rewards import rewards  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("toy"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning"),
]

TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


def trainer_for(
    folder: Path, reward: Any, *, config: VPPConfig | None = None, images: str = "image", **settings: Any
) -> Any:
    model, processor = attached(tiny_llava().train(), config)
    processor.chat_template = TEMPLATE
    loaded = [image(seed) for seed in range(4)]
    rows = datasets.Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "where is the cup"}]] * 4,
            images: loaded if images == "image" else [[one] for one in loaded],
            "boxes": [[[4.0, 4.0, 20.0, 20.0]]] * 4,
            "size_hw": [[24, 40]] * 4,
        }
    )
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        **{
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 4,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            **settings,
        },
    )
    return VPPGRPOTrainer(
        model=model, processing_class=processor, reward_funcs=reward, args=arguments, train_dataset=rows
    )


def any_reward(completions: list[Any], **columns: Any) -> list[float]:
    """Different for each, so that there is something to learn."""
    return [float(number) for number in range(len(completions))]


class TestTraining:
    @pytest.mark.parametrize("images", ["image", "images"])
    def test_prompts_and_host_move(self, images: str, tmp_path: Path) -> None:
        trainer = trainer_for(tmp_path, any_reward, images=images)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
        assert {name for name in before if name.startswith("vpp.")} <= moved
        assert any(not name.startswith("vpp.") for name in moved)

    def test_several_steps_from_one_generation(self, tmp_path: Path) -> None:
        """TRL then keeps log-probabilities from before: it asks for them while it still has the processor's inputs."""
        trainer_for(tmp_path, any_reward, num_iterations=2, steps_per_generation=2).train()

    def test_rewards_see_their_columns_and_log_what_was_unreadable(self, tmp_path: Path) -> None:
        reward = rewards("llava")
        trainer = trainer_for(tmp_path, [reward.iou, reward.format])
        trainer.train()
        assert reward.iou.answers == 8
        logged = [entry for entry in trainer.state.log_history if "iou_reward/unparsable" in entry]
        assert not logged or logged[-1]["iou_reward/unparsable"] == 1


class TestLogProbabilities:
    def test_are_of_each_samples_own_images(self, tmp_path: Path) -> None:
        """They are the same in one batch, in parts, and from the model itself; with others' images they differ."""
        trainer = trainer_for(tmp_path, any_reward)
        model, processor = trainer.model.eval(), trainer.processing_class
        images = [image(seed) for seed in (5, 6, 7)]
        text = "USER: <image> where is the cup ASSISTANT: red cup"
        inputs = processor(images=[[one] for one in images], text=[text] * 3, return_tensors="pt")
        trainer._images = [letterbox(one, 64)[None] for one in images]

        def logps(batch_size: int) -> torch.Tensor:
            with torch.no_grad():
                told, _, _ = trainer._get_per_token_logps_and_entropies(
                    model,
                    inputs["input_ids"],
                    inputs["attention_mask"],
                    2,
                    batch_size=batch_size,
                    pixel_values=inputs["pixel_values"],
                    num_images=[1, 1, 1],
                    vpp_pixel_values=inputs["vpp_pixel_values"],
                )
            return torch.as_tensor(told)

        with torch.no_grad():
            logits = model(**inputs).logits[:, -3:-1].float() / trainer.temperature
        own = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, -2:, None])[..., 0]
        assert torch.allclose(logps(3), own, atol=1e-5)
        assert torch.allclose(logps(1), own, atol=1e-5)
        trainer._images = trainer._images[::-1]
        assert not torch.allclose(logps(1)[0], own[0], atol=1e-5)


class TestRefusals:
    def test_a_reference_model_without_prompts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "trl.trainer.grpo_trainer.create_model_from_path", lambda *args, **kwargs: tiny_llava(), raising=True
        )
        with pytest.raises(VPPError, match="reference model"):
            trainer_for(tmp_path, any_reward, beta=0.1)

    def test_samples_without_a_image_column(self, tmp_path: Path) -> None:
        trainer = trainer_for(tmp_path, any_reward)
        with pytest.raises(VPPError, match="'image'"):
            trainer._views({"prompt": "where"})
