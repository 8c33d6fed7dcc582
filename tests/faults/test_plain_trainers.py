"""What is written beside the host is read again: transformers' own Trainer and its kin, and PEFT's files."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION

from tests.families import FAMILIES
from tests.tiny import FULL, TEXTS, image, tiny_llava, tiny_processor, toy_config
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError, VPPProcessor, attach_vpp
from vpp_plugins.attach import active_vpp, attach_control, unwrap
from vpp_plugins.evaluate.models import BASE, load_pretrained
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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


def rename(path: Path) -> None:
    save_file({f"other.{name}": value for name, value in load_file(path).items()}, path)


def lengthen(path: Path) -> None:
    save_file({name: torch.cat([value, value]) for name, value in load_file(path).items()}, path)


def narrow(path: Path) -> None:
    save_file({name: value[:, :5].contiguous() for name, value in load_file(path).items()}, path)


def unname(path: Path) -> None:
    save_file(load_file(path), path)


def spoil(path: Path) -> None:
    save_file({name: value * torch.nan for name, value in load_file(path).items()}, path)


def test_damaged_rows_of_the_placeholder(tmp_path: Path) -> None:
    """Lost or flipped they were passed over, and otherwise an error of Python or of safetensors."""
    trainer_for(grown, tmp_path, steps=2).train()
    folder, path = tmp_path / "checkpoint-2", tmp_path / "checkpoint-2/vpp_rows.safetensors"
    whole, trainer = path.read_bytes(), trainer_for(grown, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for damage in (Path.unlink, cut, change, rename, lengthen, narrow, unname, spoil):
        damage(path)
        with pytest.raises(VPPError, match=r"vpp_rows\.safetensors'"):
            trainer._load_from_checkpoint(str(folder))
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
        path.write_bytes(whole)
    trainer._load_from_checkpoint(str(folder))


def moved(model: nn.Module, seed: int) -> nn.Module:
    """Prompts as training leaves them."""
    torch.manual_seed(seed)
    vpp = unwrap(model).vpp
    for parameter in vpp.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    vpp.trained = True
    return model


class TestPeft:
    @pytest.mark.skipif(
        Version(version("peft")) < Version(MIN_PEFT_VERSION), reason="this transformers' add_adapter wants a newer PEFT"
    )
    def test_transformers_own_way_to_an_adapter(self, tmp_path: Path) -> None:
        """`model.load_adapter` is not PEFT's, and left the prompts beside the adapter where they were."""
        model: Any = moved(plain(), 1)
        model.add_adapter(LoraConfig(**LORA, exclude_modules=r"vpp\..*"))
        model.save_pretrained(tmp_path)
        again: Any = plain()
        again.load_adapter(str(tmp_path))

        assert equal(model.vpp, again.vpp)
        assert again.vpp.trained

    def test_a_second_adapter_does_not_change_the_prompts_of_the_first(self, tmp_path: Path) -> None:
        for name, seed in (("one", 1), ("same", 1), ("two", 2)):
            moved(lora_before(), seed).save_pretrained(tmp_path / name)
        host = plain()
        model = PeftModel.from_pretrained(host, tmp_path / "one")
        model.load_adapter(tmp_path / "same", adapter_name="same")
        kept = {name: value.clone() for name, value in host.vpp.state_dict().items()}
        with pytest.raises(VPPError, match=r"other prompts than those of the adapters that the model has"):
            model.load_adapter(tmp_path / "two", adapter_name="two")
        other: Any = plain()
        other.load_adapter(str(tmp_path / "one"), adapter_name="one")
        with pytest.raises(VPPError, match=r"other prompts than those of the adapters that the model has"):
            other.load_adapter(str(tmp_path / "two"), adapter_name="two")

        for vpp in (host.vpp, other.vpp):
            assert all(torch.equal(value, kept[name]) for name, value in vpp.state_dict().items())

    def test_a_named_adapter_has_its_prompts_in_its_own_folder(self, tmp_path: Path) -> None:
        model = get_peft_model(tiny_llava(), LoraConfig(**LORA), adapter_name="mine")
        moved(attach_vpp(model, toy_config()), 1).save_pretrained(tmp_path)
        host = plain()
        PeftModel.from_pretrained(host, tmp_path / "mine", adapter_name="mine")

        assert equal(unwrap(model).vpp, host.vpp)
        assert host.vpp.trained

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

    @pytest.mark.parametrize("beside", [True, False])
    @pytest.mark.parametrize("way", ["from_pretrained", "PEFT's load_adapter", "load_adapter", "load_pretrained"])
    def test_an_adapter_that_lacks_weights(self, way: str, beside: bool, tmp_path: Path) -> None:
        """They would stay as they began: at nothing, or at random. PEFT warned at most, and transformers in its log."""
        (moved(lora_before(), 1) if beside else get_peft_model(tiny_llava(), LoraConfig(**LORA))).save_pretrained(
            tmp_path / "lora"
        )
        tiny_llava().save_pretrained(tmp_path / "host")
        tiny_processor().save_pretrained(tmp_path / "host")
        path, config = tmp_path / "lora/adapter_model.safetensors", tmp_path / "lora/adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), BASE: str(tmp_path / "host")}))
        whole = load_file(path)

        def load() -> None:
            folder, host = str(tmp_path / "lora"), plain()
            if way == "load_pretrained":
                load_pretrained(folder, str(tmp_path / "host"))
            elif way == "load_adapter":
                host.load_adapter(folder)  # type: ignore[operator]
            else:
                model = PeftModel.from_pretrained(host, folder)
                if way == "PEFT's load_adapter":
                    model.load_adapter(folder, adapter_name="other")

        load()
        damages = {
            "lacking": dict(list(whole.items())[1:]),
            "renamed": {name.replace("lora_A", "lora_C"): value for name, value in whole.items()},
        }
        if way in ("load_adapter", "load_pretrained"):
            damages["too many"] = {**whole, next(iter(whole)).replace("layers.0", "layers.9"): torch.zeros(4, 4)}
        for tensors in damages.values():
            save_file(tensors, path, metadata={"format": "pt"})
            with pytest.raises(VPPError, match=r"the adapter in '.*lora' does not fit .*weights are"):
                load()

    def test_an_adapter_alone_brings_none(self, tmp_path: Path) -> None:
        get_peft_model(tiny_llava(), LoraConfig(**LORA)).save_pretrained(tmp_path)
        host = attach_vpp(tiny_llava(), toy_config())
        before = {name: value.clone() for name, value in host.vpp.state_dict().items()}
        PeftModel.from_pretrained(host, tmp_path)

        assert all(torch.equal(value, before[name]) for name, value in host.vpp.state_dict().items())
        assert not host.vpp.trained


def test_a_control_is_not_saved_beside_the_prompts_of_another(tmp_path: Path) -> None:
    """Loading would have put them on it."""
    plain().save_pretrained(tmp_path)
    with pytest.raises(VPPError, match=r"a control without prompts, and .* holds those of another"):
        attach_control(tiny_llava()).save_pretrained(tmp_path)


def test_accelerate_saves_and_loads_all_of_it(tmp_path: Path) -> None:
    """Trained weights were called untrained where they came by load_state_dict, which says nothing of them."""
    from accelerate import Accelerator

    for model, trained in ((moved(plain(), 1), True), (plain(), False)):
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(model)
        accelerator.save_state(str(tmp_path / str(trained)))
        again = plain()
        other = Accelerator(cpu=True)
        prepared = other.prepare(again)
        other.load_state(str(tmp_path / str(trained)))

        assert equal(unwrap(prepared), model)
        assert again.vpp.trained is trained


def test_prompts_that_take_the_place_of_those_on_meta_are_trained_ones() -> None:
    """They were called untrained: there was nothing to compare them with."""
    model = plain().to("meta")
    model.load_state_dict(model.state_dict(), assign=True)
    assert not model.vpp.trained
    model.load_state_dict(moved(plain(), 1).state_dict(), assign=True)
    assert model.vpp.trained


@pytest.mark.parametrize("lacking", ["a prompt", "the prompts", "a shape"])
def test_parts_of_prompts_are_not_taken_for_trained_ones(lacking: str) -> None:
    """A detector that is trained on its own, say."""
    tensors, model = moved(plain(), 1).state_dict(), plain()
    names = [name for name in tensors if name.startswith("vpp.")]
    for name in names[: {"a prompt": 1, "the prompts": len(names), "a shape": 0}[lacking]]:
        del tensors[name]
    if lacking == "a shape":
        tensors[names[0]] = tensors[names[0]][..., :1]
        with pytest.raises(RuntimeError, match="size mismatch"):
            model.load_state_dict(tensors)
    else:
        model.load_state_dict(tensors, strict=False)
    assert not model.vpp.trained


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
