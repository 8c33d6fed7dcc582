"""What is written beside the host is read again: transformers' own Trainer and its kin, and PEFT's files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from tests.families import FAMILIES
from tests.tiny import FULL, TEXTS, image, tiny_llava, tiny_processor, toy_config
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError, VPPProcessor, attach_vpp
from vpp_plugins.attach import active_vpp, unwrap
from vpp_plugins.train import train as vpp_train
from vpp_plugins.train.evaluation import TrainingEvaluation

pytestmark = [
    pytest.mark.usefixtures("toy"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
LORA = {"target_modules": ["q_proj"], "r": 4}


def plain(**host: Any) -> nn.Module:
    return attach_vpp(tiny_llava(**host), toy_config())


def lora_after(**host: Any) -> nn.Module:
    model = plain(**host)
    VPPProcessor(tiny_processor(), model)
    return get_peft_model(model, LoraConfig(**LORA, modules_to_save=["vpp"]))


def lora_before(**host: Any) -> nn.Module:
    return attach_vpp(get_peft_model(tiny_llava(**host), LoraConfig(**LORA)), toy_config())


def grown() -> nn.Module:
    return plain(vocabulary=FULL)


def grown_and_tied() -> nn.Module:
    return plain(vocabulary=FULL, tied=True)


WAYS = [plain, grown, grown_and_tied, lora_after, lora_before]


def trainer_for(
    build: Callable[[], Any], folder: Path, *, kind: type = Trainer, steps: int = 4, **settings: Any
) -> Any:
    torch.manual_seed(1)
    model = build()
    processor = VPPProcessor(tiny_processor(), model)
    for vpp in (module for module in model.modules() if type(module).__name__ == "VPP"):
        vpp.trained = True
    made = [dict(processor(images=[image(seed)], text=TEXTS[1], return_tensors="pt")) for seed in range(8)]
    rows = [{**inputs, "labels": inputs["input_ids"].clone()} for inputs in made]
    arguments = Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    return kind(
        model=model.train(),
        args=arguments(
            output_dir=str(folder),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            **quiet,
            **settings,
        ),
        train_dataset=rows,
        eval_dataset=rows[:2],
        data_collator=lambda found: {name: torch.cat([row[name] for row in found]) for name in found[0]},
    )


BEST: dict[str, Any] = {  # the loss falls, so the first is best where more is better
    "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2,
    "metric_for_best_model": "eval_loss", "greater_is_better": True,
}  # fmt: skip


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("build", WAYS)
def test_a_resumed_run_ends_with_the_same_weights(build: Callable[[], Any], tmp_path: Path) -> None:
    """Prompts and host: of LLaVA, transformers' own resume does not even find the host's names."""
    whole = trainer_for(build, tmp_path)
    whole.train()
    resumed = trainer_for(build, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    assert equal(active_vpp(unwrap(whole.model)), active_vpp(unwrap(resumed.model)))
    assert equal(whole.model, resumed.model)
    assert active_vpp(unwrap(resumed.model)).trained


@pytest.mark.parametrize("build", WAYS)
def test_the_best_checkpoints_prompts_come_with_its_host(build: Callable[[], Any], tmp_path: Path) -> None:
    trainer = trainer_for(build, tmp_path, save_total_limit=1, **BEST)
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    two_steps = trainer_for(build, tmp_path / "two", steps=2)
    two_steps.train()

    assert equal(trainer.model, two_steps.model)


@pytest.mark.parametrize("kind", ["Seq2SeqTrainer", "SFTTrainer"])
def test_kin_of_trainer(kind: str, tmp_path: Path) -> None:
    """They share Trainer's code; what comes of a checkpoint is looked at without training."""
    if kind == "SFTTrainer":
        cls = pytest.importorskip("trl").SFTTrainer
        assert cls._load_from_checkpoint is Trainer._load_from_checkpoint
        assert cls._load_best_model is Trainer._load_best_model
        return
    trained = trainer_for(plain, tmp_path, kind=Seq2SeqTrainer, steps=2)
    trained.train()
    fresh = trainer_for(plain, tmp_path, kind=Seq2SeqTrainer)
    fresh._load_from_checkpoint(str(tmp_path / "checkpoint-2"))

    assert equal(trained.model, fresh.model)


def test_a_checkpoint_in_shards(tmp_path: Path) -> None:
    trained = trainer_for(plain, tmp_path, steps=2)
    trained.train()
    folder = tmp_path / "checkpoint-2"
    (folder / "model.safetensors").unlink()
    trained.model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    fresh = trainer_for(plain, tmp_path)
    fresh._load_from_checkpoint(str(folder))

    assert equal(trained.model, fresh.model)


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        trainer_for(plain, tmp_path, steps=2).train()
        return tmp_path / "checkpoint-2"

    @pytest.mark.parametrize("lost", ["vpp.safetensors", "vpp_config.json"])
    def test_lost_prompts(self, folder: Path, lost: str) -> None:
        (folder / lost).unlink()
        with pytest.raises(VPPError, match=lost.replace(".", r"\.")):
            trainer_for(plain, folder).train(resume_from_checkpoint=str(folder))

    def test_changed_prompts(self, folder: Path) -> None:
        tensors = load_file(folder / "vpp.safetensors")
        name = next(iter(tensors))
        save_file({**tensors, name: tensors[name] + 1}, folder / "vpp.safetensors")
        with pytest.raises(VPPError, match="SHA-256"):
            trainer_for(plain, folder).train(resume_from_checkpoint=str(folder))

    def test_prompts_of_other_settings(self, folder: Path) -> None:
        config = json.loads((folder / "vpp_config.json").read_text())
        config["global_vpp"]["alpha"] = 0.5
        (folder / "vpp_config.json").write_text(json.dumps(config))
        with pytest.raises(VPPError, match=r"global_vpp\.alpha is 0\.5 there and 0\.95 here"):
            trainer_for(plain, folder).train(resume_from_checkpoint=str(folder))

    def test_a_host_whose_names_mean_nothing(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({f"other.{name}": value for name, value in tensors.items()}, folder / "model.safetensors")
        with pytest.raises(VPPError, match="tensors that Trainer cannot load into this LlavaFor"):
            trainer_for(plain, folder).train(resume_from_checkpoint=str(folder))

    def test_an_adapter_that_was_saved_by_other_means(self, tmp_path: Path) -> None:
        trainer_for(lora_before, tmp_path, steps=2).train()
        folder = tmp_path / "checkpoint-2"
        (folder / "vpp.safetensors").unlink()
        with pytest.raises(VPPError, match="holds no prompts"):
            trainer_for(lora_before, tmp_path).train(resume_from_checkpoint=str(folder))


class TestPeft:
    def test_prompts_beside_an_adapter_are_saved_and_loaded(self, tmp_path: Path) -> None:
        """Attached after get_peft_model, they train, and no modules_to_save names them."""
        model = lora_before()
        unwrap(model).vpp.trained = True
        for parameter in model.parameters():
            parameter.data += 0.125 * parameter.requires_grad
        model.save_pretrained(tmp_path)
        host = attach_vpp(tiny_llava(), toy_config())
        again = PeftModel.from_pretrained(host, tmp_path)

        assert equal(unwrap(model).vpp, unwrap(again).vpp)
        assert unwrap(again).vpp.trained

    def test_an_adapter_alone_brings_none(self, tmp_path: Path) -> None:
        get_peft_model(tiny_llava(), LoraConfig(**LORA)).save_pretrained(tmp_path)
        host = attach_vpp(tiny_llava(), toy_config())
        before = {name: value.clone() for name, value in host.vpp.state_dict().items()}
        PeftModel.from_pretrained(host, tmp_path)

        assert all(torch.equal(value, before[name]) for name, value in host.vpp.state_dict().items())
        assert not host.vpp.trained


def test_ones_own_loading_is_left_alone(tmp_path: Path) -> None:
    """A state dict that a user loads is what he gave, even where prompts stand beside its file."""
    model = plain()
    model.save_pretrained(tmp_path)
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("vpp.")}
    other = plain()
    other.vpp.global_vpp.prompt.data += 1
    before = other.vpp.global_vpp.prompt.clone()
    found = other.load_state_dict(tensors, strict=False)

    assert {name.partition(".")[0] for name in found.missing_keys} == {"vpp"}
    assert torch.equal(other.vpp.global_vpp.prompt, before)


@pytest.mark.parametrize("changes", [{}, {"freeze": ["llm", "projector", "vision"]}, {"lora_r": 4}])
def test_vpp_trains_own_trainer_brings_the_best_prompts_too(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def falling(self: TrainingEvaluation, model: Any, processor: Any, step: int) -> dict[str, float]:
        return {"eval_acc_50": 1 / step}

    monkeypatch.setattr(TrainingEvaluation, "__call__", falling)
    data = write_data(tmp_path / "data", samples(8))
    asked = tmp_path / "data/asked.jsonl"
    turn = {"locate": "the cup", "boxes": [[1, 2, 20, 20]]}
    asked.write_text(json.dumps({"id": "a", "image": "0.png", "width": 40, "height": 24, "turns": [turn]}) + "\n")
    best = {**BEST, "metric_for_best_model": "acc_50", "eval_data": str(asked), "eval_format": "neutral"}
    family = FAMILIES["llava"]
    settings = recipe(data, tmp_path / "run", **{**best, **changes})
    trained = vpp_train(settings, model=attach_vpp(family.model(), toy_config()), processor=family.processor())

    for name in ("vpp.safetensors", "model.safetensors", "adapter_model.safetensors"):
        kept = tmp_path / "run/checkpoint-2" / name
        if kept.exists():
            ours, theirs = load_file(trained.folder / name), load_file(kept)
            assert name[0] == "m" or all(torch.equal(value, theirs[key]) for key, value in ours.items())
            assert sorted(map(digest, ours.values())) == sorted(map(digest, theirs.values()))


def digest(value: torch.Tensor) -> float:
    """Of a tensor, whatever its name: the last folder has the published ones."""
    return float(value.double().sin().sum())
