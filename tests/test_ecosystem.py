"""VPP under the libraries that people put around a model: PEFT, Trainer, accelerate, DDP and torch.compile."""

import copy
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

from tests.tiny import FULL, TEXTS, attached, inputs_for, picture, tiny_llava, tiny_processor, toy_config
from tests.twin import assert_same, fingerprint, twin_of
from vpp_plugins import (
    VPPError,
    VPPProcessor,
    attach_vpp,
    detach_vpp,
    is_attached,
    load_vpp,
    save_vpp,
    vpp_disabled,
)
from vpp_plugins.attach import unwrap
from vpp_plugins.host import active_vpp

pytestmark = pytest.mark.usefixtures("toy")

LORA = {
    "plain": LoraConfig(target_modules=["q_proj"]),
    "modules_to_save": LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"]),
    "lora on the embedding": LoraConfig(target_modules=["q_proj", "embed_tokens"]),
    "saved embedding": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "saved vision tower": LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["vision_tower"]),
    "everything": LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["vpp", "embed_tokens", "lm_head"]),
    "causal lm": LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"], task_type="CAUSAL_LM"),
}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class TestPeft:
    @pytest.mark.parametrize("lora", list(LORA))
    @pytest.mark.parametrize("host", [{}, {"vocabulary": FULL}], ids=["spare row", "grown"])
    def test_an_attached_host_in_a_peft_model(self, lora: str, host: dict[str, Any]) -> None:
        """Fresh LoRA weights add nothing, so answers stay the same; then a backward must reach what it should."""
        model, processor = attached(tiny_llava(**host))
        inputs = inputs_for(processor, [2, 1])
        expected, answer = logits(model, inputs), model.generate(**inputs, max_new_tokens=3)

        peft = get_peft_model(model, copy.deepcopy(LORA[lora]))

        assert is_attached(peft)
        assert torch.equal(logits(peft, inputs), expected)
        assert torch.equal(peft.generate(**inputs, max_new_tokens=3), answer)
        peft(**inputs, labels=inputs["input_ids"]).loss.backward()
        found = {name for name, p in active_vpp(model).named_parameters() if p.grad is not None and p.grad.any()}
        everything = {name for name, _ in active_vpp(model).named_parameters()}
        assert found == (everything if "vpp" in (LORA[lora].modules_to_save or []) else set())

    def test_modules_to_save_trains_the_prompts_that_are_used(self) -> None:
        """PEFT wraps every module whose name ends with "vpp"; one inside another would be a copy that nobody uses."""
        model, _ = attached()
        names = set(model.vpp.state_dict())

        peft = get_peft_model(model, LORA["modules_to_save"])

        prefix = "base_model.model.vpp.modules_to_save.default."
        assert {n for n in trainable(peft) if ".vpp." in n} == {prefix + name for name in names}

    def test_a_processor_made_afterwards(self) -> None:
        model = attach_vpp(tiny_llava(), toy_config())
        peft = get_peft_model(model, LORA["modules_to_save"])
        processor = VPPProcessor(tiny_processor(), peft)
        peft.vpp.trained = True
        inputs = inputs_for(processor, [1])

        expected = logits(peft, inputs)
        with peft.disable_adapter():
            assert torch.equal(logits(peft, inputs), expected)

    @pytest.mark.parametrize("lora", ["plain", "lora on the embedding", "saved embedding", "saved vision tower"])
    def test_a_peft_model_that_is_attached_afterwards(self, lora: str) -> None:
        peft = get_peft_model(tiny_llava(), copy.deepcopy(LORA[lora]))
        assert attach_vpp(peft, toy_config()) is peft
        processor = VPPProcessor(tiny_processor(), peft)
        peft.vpp.trained = True
        inputs = inputs_for(processor, [2, 1])
        reference, _ = attached()

        assert {n for n in trainable(peft) if ".vpp." in n}
        assert torch.equal(logits(peft, inputs), logits(reference, inputs))
        assert torch.equal(peft.generate(**inputs, max_new_tokens=3), reference.generate(**inputs, max_new_tokens=3))
        peft(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert all(p.grad.any() for p in peft.vpp.parameters())
        assert detach_vpp(peft) is peft
        assert type(peft.get_base_model()) is LlavaForConditionalGeneration

    @pytest.mark.parametrize("lora", ["modules_to_save", "saved embedding"])
    def test_save_vpp_writes_what_was_trained(self, lora: str, tmp_path: Path) -> None:
        model, processor = attached()
        peft = get_peft_model(model, LORA[lora])
        for parameter in active_vpp(model).parameters():
            parameter.data += 0.5
        inputs = inputs_for(processor, [1])

        save_vpp(peft, tmp_path)

        assert load_file(tmp_path / "vpp.safetensors").keys() == attached()[0].vpp.state_dict().keys()
        fresh, _ = attached()
        load_vpp(fresh, tmp_path)
        assert torch.equal(logits(fresh, inputs), logits(peft, inputs))
        load_vpp(peft, tmp_path)

    def test_save_vpp_with_the_adapter_off_writes_what_is_then_used(self, tmp_path: Path) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        expected = logits(model, inputs)
        peft = get_peft_model(model, LORA["modules_to_save"])
        for parameter in active_vpp(model).parameters():
            parameter.data += 0.5

        with peft.disable_adapter():
            assert torch.equal(logits(peft, inputs), expected)
            save_vpp(peft, tmp_path)

        fresh, _ = attached(config=toy_config(seed=9))
        load_vpp(fresh, tmp_path)
        assert torch.equal(logits(fresh, inputs), expected)

    def test_save_pretrained_of_the_base_model(self, tmp_path: Path) -> None:
        model, _ = attached()
        get_peft_model(model, LORA["modules_to_save"])
        for parameter in active_vpp(model).parameters():
            parameter.data += 0.5

        model.save_pretrained(tmp_path)

        written = load_file(tmp_path / "vpp.safetensors")
        assert all(torch.equal(value, written[name]) for name, value in active_vpp(model).state_dict().items())
        assert not [name for name in load_file(tmp_path / "model.safetensors") if "vpp" in name]

    def test_peft_saves_and_loads_the_prompts_too(self, tmp_path: Path) -> None:
        model, processor = attached()
        peft = get_peft_model(model, LORA["modules_to_save"])
        for parameter in active_vpp(model).parameters():
            parameter.data += 0.5
        inputs = inputs_for(processor, [1])

        peft.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(attached()[0], tmp_path)

        assert torch.equal(logits(again, inputs), logits(peft, inputs))

    @pytest.mark.parametrize("lora", list(LORA))
    def test_merge_and_unload(self, lora: str) -> None:
        model, processor = attached()
        before = fingerprint(detach_vpp(copy.deepcopy(model)))
        inputs = inputs_for(processor, [2, 1])
        peft = get_peft_model(model, copy.deepcopy(LORA[lora]))
        expected = logits(peft, inputs)

        merged = peft.merge_and_unload()

        assert merged is model
        assert is_attached(merged)
        assert torch.equal(logits(merged, inputs), expected)
        after = fingerprint(detach_vpp(merged))
        assert after["weights"].keys() == before["weights"].keys()
        assert all(torch.equal(after["weights"][name], weight) for name, weight in before["weights"].items())
        assert after["modules"].keys() == before["modules"].keys()
        assert [m["hooks"] for n, m in after["modules"].items() if "vision" not in n] == [
            m["hooks"] for n, m in before["modules"].items() if "vision" not in n
        ]

    @pytest.mark.parametrize("lora", list(LORA))
    @pytest.mark.parametrize("vocabulary", [32, FULL], ids=["spare row", "grown"])
    def test_vpp_disabled_is_the_bare_peft_model(self, lora: str, vocabulary: int) -> None:
        bare = get_peft_model(tiny_llava(vocabulary=vocabulary), LoraConfig(target_modules=["q_proj"]))
        model, processor = attached(tiny_llava(vocabulary=vocabulary))
        peft = get_peft_model(model, copy.deepcopy(LORA[lora]))

        with vpp_disabled(peft):
            inputs = inputs_for(processor, [2, 1])
            assert torch.equal(logits(peft, inputs), logits(bare, inputs))
        assert logits(peft, inputs_for(processor, [2, 1])).isfinite().all()

    def test_a_vocabulary_that_peft_wraps_cannot_change(self) -> None:
        model = attach_vpp(tiny_llava(vocabulary=FULL), toy_config())
        peft = get_peft_model(model, copy.deepcopy(LORA["saved embedding"]))

        with pytest.raises(VPPError, match="while PEFT wraps the embedding or the head: make the VPPProcessor before"):
            VPPProcessor(tiny_processor(), peft)

        model, processor = attached(tiny_llava(vocabulary=FULL))
        peft = get_peft_model(model, copy.deepcopy(LORA["saved embedding"]))
        with pytest.raises(VPPError, match="call detach_vpp after merge_and_unload or unload"):
            detach_vpp(peft)
        assert logits(peft, inputs_for(processor, [1])).isfinite().all()


class Samples(Dataset[dict[str, Any]]):
    """One picture and one text each, as the processor makes them, with a column that no model knows."""

    def __init__(self, processor: VPPProcessor) -> None:
        made = [processor(images=[picture(seed)], text=TEXTS[1], return_tensors="pt") for seed in range(4)]
        self.samples = [{**inputs, "labels": inputs["input_ids"], "note": "not for the model"} for inputs in made]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def joined(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    assert "note" not in samples[0]
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def trainer_for(model: Any, processor: VPPProcessor, folder: Path, **arguments: Any) -> Trainer:
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **arguments,
    )
    return Trainer(
        model=model,
        args=settings,
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
        peft = get_peft_model(model, copy.deepcopy(LORA["modules_to_save"]))
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


class TestAccelerate:
    @pytest.mark.filterwarnings(
        "ignore:.*whereas the model is on meta"
    )  # transformers before 5.23, of any offloaded host
    @pytest.mark.parametrize("order", ["attach first", "offload first"])
    def test_cpu_offload(self, order: str, tmp_path: Path) -> None:
        reference, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        expected, answer = logits(reference, inputs), reference.generate(**inputs, max_new_tokens=3)
        model = tiny_llava()
        if order == "offload first":
            cpu_offload(model, execution_device=torch.device("cpu"))
        attach_vpp(model, toy_config())
        VPPProcessor(tiny_processor(), model)
        model.vpp.trained = True
        if order == "attach first":
            cpu_offload(model, execution_device=torch.device("cpu"))

        with torch.no_grad():
            assert torch.equal(logits(model, inputs), expected)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3), answer)
        save_vpp(model, tmp_path)
        written = load_file(tmp_path / "vpp.safetensors")
        assert all(torch.equal(value, written[name]) for name, value in reference.vpp.state_dict().items())

    def test_the_signature_survives_offloading(self) -> None:
        """accelerate puts its own forward on the instance; Trainer must still see VPP's arguments, and never `self`."""
        offloaded_first = tiny_llava()
        cpu_offload(offloaded_first, execution_device=torch.device("cpu"))
        attach_vpp(offloaded_first, toy_config())
        attached_first = attach_vpp(tiny_llava(), toy_config())
        cpu_offload(attached_first, execution_device=torch.device("cpu"))
        expected = list(inspect.signature(attach_vpp(tiny_llava(), toy_config()).forward).parameters)

        assert list(inspect.signature(offloaded_first.forward).parameters) == expected
        assert "vpp_pixel_values" in inspect.signature(attached_first.forward).parameters

    @pytest.mark.parametrize("order", ["attach first", "offload first"])
    def test_detach_and_remove_the_hooks_in_either_order(self, order: str) -> None:
        bare = tiny_llava()
        cpu_offload(bare, execution_device=torch.device("cpu"))
        inputs = inputs_for(tiny_processor(), [2, 1])
        expected = logits(bare, inputs)
        model = tiny_llava()
        if order == "offload first":
            cpu_offload(model, execution_device=torch.device("cpu"))
        attach_vpp(model, toy_config())
        if order == "attach first":
            cpu_offload(model, execution_device=torch.device("cpu"))

        detach_vpp(model)

        assert torch.equal(logits(model, inputs), expected)
        assert inspect.signature(model.forward) == inspect.signature(bare.forward)
        remove_hook_from_submodules(model)
        remove_hook_from_submodules(bare)
        assert_same(fingerprint(model), fingerprint(bare))

    def test_loading_into_offloaded_prompts_is_refused(self, tmp_path: Path) -> None:
        model, _ = attached()
        save_vpp(model, tmp_path)
        cpu_offload(model, execution_device=torch.device("cpu"))

        with pytest.raises(VPPError, match=r"the prompts are offloaded.* call load_vpp before dispatching"):
            load_vpp(model, tmp_path)

    def test_the_vocabulary_cannot_grow_while_offloaded(self) -> None:
        model = tiny_llava(vocabulary=FULL)
        cpu_offload(model, execution_device=torch.device("cpu"))
        attach_vpp(model, toy_config())

        with pytest.raises(
            VPPError, match="while accelerate offloads its weights: make the VPPProcessor before dispatching"
        ):
            VPPProcessor(tiny_processor(), model)


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TestWrappers:
    def test_distributed_data_parallel(self, one_process_group: None, tmp_path: Path) -> None:
        reference, processor = attached()
        inputs = inputs_for(processor, [2, 1])
        model, processor = attached()
        wrapped = DistributedDataParallel(model)

        loss = wrapped(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()

        assert unwrap(wrapped) is model
        assert is_attached(wrapped)
        assert torch.equal(loss, reference(**inputs, labels=inputs["input_ids"]).loss)
        assert all(parameter.grad.any() for parameter in model.vpp.parameters())
        save_vpp(wrapped, tmp_path)
        load_vpp(wrapped, tmp_path)
        with vpp_disabled(wrapped):
            bare = inputs_for(processor, [1])
            assert torch.equal(logits(wrapped, bare), logits(tiny_llava(), bare))
        assert detach_vpp(wrapped) is wrapped
        assert not is_attached(model)

    def test_attach_to_a_wrapped_model(self, one_process_group: None) -> None:
        wrapped = DistributedDataParallel(tiny_llava())

        assert attach_vpp(wrapped, toy_config()) is wrapped
        assert is_attached(wrapped.module)

    @pytest.mark.timeout(600)  # twelve seconds of work, on a machine that others may be using too
    def test_torch_compile(self) -> None:
        """In a process of its own, because the checks of signatures that our tests turn on cannot be traced."""
        finished = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)

        assert finished.returncode == 0, finished.stderr[-3000:]

    def test_wrappers_in_wrappers(self, one_process_group: None) -> None:
        model, processor = attached()
        inputs = inputs_for(processor, [1])
        twin, theirs = twin_of(model, inputs)
        peft = get_peft_model(model, copy.deepcopy(LORA["modules_to_save"]))
        wrapped = DistributedDataParallel(peft)

        assert unwrap(wrapped) is model
        assert torch.equal(logits(wrapped, inputs), logits(twin, theirs))


COMPILED = """
import warnings

warnings.simplefilter("error")
import torch
from transformers import CompileConfig

from tests.tiny import ToyPlugin, attached, inputs_for, tiny_llava, tiny_processor, toy_config
from vpp_plugins import VPPProcessor, attach_vpp, detach_vpp, is_attached
from vpp_plugins.attach import unwrap
from vpp_plugins.plugins import manager

manager().register(ToyPlugin(), "toy")
torch.set_num_threads(1)
reference, processor = attached()
inputs = inputs_for(processor, [2, 1])
expected = reference.generate(**inputs, max_new_tokens=3)
with torch.no_grad():
    logits = reference(**inputs).logits

model = attach_vpp(tiny_llava(), toy_config())
compiled = torch.compile(model, backend="eager")
VPPProcessor(tiny_processor(), compiled)
model.vpp.trained = True
with torch.no_grad():
    for _ in range(2):
        assert torch.equal(compiled(**inputs).logits, logits)
assert torch.equal(compiled.generate(**inputs, max_new_tokens=3), expected)

# what transformers does by itself on a GPU: decoding compiled as one graph, which VPP must not break
config = CompileConfig(fullgraph=True, backend="eager", mode=None)
model._valid_auto_compile_criteria = lambda *args, **kwargs: True
found = model.generate(**inputs, max_new_tokens=3, cache_implementation="static", compile_config=config)
assert torch.equal(found, expected)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"]

assert detach_vpp(compiled) is compiled and not is_attached(model)
assert attach_vpp(compiled, toy_config()) is compiled
assert is_attached(compiled) and unwrap(compiled) is model
"""
