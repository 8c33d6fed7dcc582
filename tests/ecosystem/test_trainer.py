"""VPP under transformers' Trainer and TRL's SFTTrainer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

from tests.ecosystem.hosts import four_families, labels_of, logits
from tests.families import attached_family, family_inputs
from tests.tiny import FULL, TEXTS, attached, image, inputs_for, tiny_llava
from vpp_plugins import VPPProcessor, load_vpp
from vpp_plugins.attach.host import active_vpp

pytestmark = pytest.mark.usefixtures("toy")


class Samples(Dataset[dict[str, Any]]):
    """One image and one text each, as the processor makes them, with a column that no model knows."""

    def __init__(self, processor: VPPProcessor) -> None:
        made = [processor(images=[image(seed)], text=TEXTS[1], return_tensors="pt") for seed in range(4)]
        self.samples = [{**inputs, "labels": inputs["input_ids"], "note": "not for the model"} for inputs in made]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def joined(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    assert "note" not in samples[0]
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def settings_for(folder: Path, **arguments: Any) -> TrainingArguments:
    two = {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), learning_rate=1e-2, **{**two, **quiet, **arguments})


def trainer_for(model: Any, processor: VPPProcessor, folder: Path, **arguments: Any) -> Trainer:
    return Trainer(
        model=model,
        args=settings_for(folder, **arguments),
        train_dataset=Samples(processor),
        data_collator=joined,
        processing_class=processor,  # type: ignore[arg-type]
    )


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")
class TestTrainer:
    @pytest.mark.parametrize("host", [{}, {"vocabulary": FULL, "tied": True}], ids=["spare row", "grown and tied"])
    def test_keeps_the_column_trains_and_writes_both_parts(self, host: dict[str, Any], tmp_path: Path) -> None:
        model, processor = attached(tiny_llava(**host).train())
        before = {name: value.clone() for name, value in model.vpp.state_dict().items()}

        trainer_for(model, processor, tmp_path).train()

        assert all(not torch.equal(value, before[name]) for name, value in model.vpp.state_dict().items())
        folder = tmp_path / "checkpoint-2"
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "vpp.safetensors", "vpp_config.json", "tokenizer.json"} <= names
        assert not [name for name in load_file(folder / "model.safetensors") if "vpp" in name]
        written = load_file(folder / "vpp.safetensors")
        assert all(torch.equal(value, written[name]) for name, value in model.vpp.state_dict().items())
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]

        inputs = inputs_for(processor, [2, 1])
        bare = LlavaForConditionalGeneration.from_pretrained(folder)
        again, _ = attached(bare)
        load_vpp(again, folder)
        # the placeholder's own row is not saved: it is never embedded, and its logit never answers
        known = slice(processor.tokenizer.convert_tokens_to_ids("<|vpp|>"))
        assert torch.equal(logits(again.eval(), inputs)[..., known], logits(model.eval(), inputs)[..., known])

    def test_with_peft_and_checkpointing(self, tmp_path: Path) -> None:
        model, processor = attached(tiny_llava().train())
        peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"]))
        before = {name: value.clone() for name, value in active_vpp(model).state_dict().items()}
        host = {name: value.clone() for name, value in peft.state_dict().items() if "base_layer" in name}

        trainer_for(
            peft,
            processor,
            tmp_path,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        ).train()

        assert all(not torch.equal(value, before[name]) for name, value in active_vpp(model).state_dict().items())
        assert all(torch.equal(value, host[name]) for name, value in peft.state_dict().items() if name in host)
        assert "adapter_model.safetensors" in {path.name for path in (tmp_path / "checkpoint-2").iterdir()}

    def test_data_columns_that_the_host_does_not_know_are_pruned(self, tmp_path: Path) -> None:
        model, processor = attached()
        trainer = trainer_for(model, processor, tmp_path)

        batch = next(iter(trainer.get_train_dataloader()))

        assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "vpp_pixel_values", "labels"}


class OneBatch(Dataset[dict[str, Any]]):
    """A batch that is made already, as often as a trainer asks."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.inputs


class TestEveryFamily:
    @four_families
    def test_trains_the_prompts_and_writes_both_parts(self, family: str, tmp_path: Path) -> None:
        model, processor = attached_family(family)
        before = {name: value.clone() for name, value in model.vpp.state_dict().items()}
        inputs = family_inputs(processor, [2, 1])

        Trainer(
            model=model.train(),
            args=settings_for(tmp_path, max_steps=1, save_steps=1, per_device_train_batch_size=1),
            train_dataset=OneBatch({**inputs, "labels": labels_of(model, inputs)}),
            data_collator=lambda samples: dict(samples[0]),
            processing_class=processor,
        ).train()

        assert all(not torch.equal(value, before[name]) for name, value in model.vpp.state_dict().items())
        written = load_file(tmp_path / "checkpoint-1/vpp.safetensors")
        assert all(torch.equal(value, written[name]) for name, value in model.vpp.state_dict().items())
        shard = load_file(tmp_path / "checkpoint-1/model.safetensors")
        assert not [name for name in shard if "vpp" in name]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")
class TestSFTTrainer:
    """TRL computes its loss from the inner model, past the host's own forward; VPP must be there nonetheless.

    TRL accepts transformers' processors only, so it is given the inner one, and the collator is given ours.
    """

    @four_families
    def test_trains_the_prompts(self, family: str, tmp_path: Path) -> None:
        trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
        model, processor = attached_family(family)
        before = {name: value.clone() for name, value in model.vpp.state_dict().items()}
        rows = [
            {
                "images": [image(seed)],
                "prompt": [{"role": "user", "content": "where is the cup"}],
                "completion": [{"role": "assistant", "content": "the red cup ."}],
            }
            for seed in range(2)
        ]
        settings = trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            save_steps=1,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            max_length=None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        trainer = trl.SFTTrainer(
            model=model.train(),
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=processor.processor,
            data_collator=trl.trainer.sft_trainer.DataCollatorForVisionLanguageModeling(
                processor=processor, completion_only_loss=True
            ),
        )

        trainer.train()

        assert all(not torch.equal(value, before[name]) for name, value in model.vpp.state_dict().items())
        assert (tmp_path / "checkpoint-1/vpp.safetensors").exists()

    def test_its_loss_is_the_forwards(self) -> None:
        trl = pytest.importorskip("trl")
        model, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        labels = labels_of(model, inputs).masked_fill(inputs["attention_mask"] == 0, -100)
        expected = model(**inputs, labels=labels).loss
        trl.trainer.sft_trainer.add_fused_lm_head(model)

        fused = model(**inputs, labels=labels, fused_lm_head=True)

        torch.testing.assert_close(fused.loss, expected)
