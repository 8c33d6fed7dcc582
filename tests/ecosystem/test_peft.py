"""VPP and PEFT: either may come first; the prompts train whole or not at all, and are never lost silently."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from tests.ecosystem.hosts import four_families, labels_of, logits, trainable
from tests.families import FAMILIES, attached_family, family_inputs
from tests.tiny import FULL, attached, inputs_for, tiny_llava, tiny_processor, toy_config
from vpp_plugins import (
    Grounder,
    VPPError,
    VPPProcessor,
    attach_vpp,
    detach_vpp,
    is_attached,
    load_vpp,
    save_vpp,
    vpp_disabled,
)
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.testing.promises import fingerprint

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


class TestEveryFamily:
    @four_families
    def test_attach_first(self, family: str) -> None:
        model, processor = attached_family(family)
        inputs = family_inputs(processor, [2, 1])
        expected, answer = logits(model, inputs), model.generate(**inputs, max_new_tokens=3)

        peft = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["vpp"]))

        assert torch.equal(logits(peft, inputs), expected)
        assert torch.equal(peft.generate(**inputs, max_new_tokens=3), answer)
        peft(**inputs, labels=labels_of(peft, inputs)).loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in active_vpp(model).parameters())

    @four_families
    def test_peft_first(self, family: str) -> None:
        model, processor = attached_family(family)
        inputs = family_inputs(processor, [2, 1])
        peft = get_peft_model(FAMILIES[family].model(), LoraConfig(target_modules=["q_proj", "v_proj"]))

        attach_vpp(peft, toy_config())
        VPPProcessor(FAMILIES[family].processor(), peft)
        peft.vpp.trained = True

        assert torch.equal(logits(peft, inputs), logits(model, inputs))
        assert {n for n in trainable(peft) if ".vpp." in n}
        assert {n for n in trainable(peft) if "lora_" in n}

    @four_families
    def test_merge_and_unload_after_training(self, family: str) -> None:
        model, processor = attached_family(family)
        inputs = family_inputs(processor, [2, 1])
        peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"]))
        for name, parameter in peft.named_parameters():
            if name in trainable(peft):
                parameter.data += 0.02 * torch.randn_like(parameter)
        expected = logits(peft, inputs)

        merged = peft.merge_and_unload()

        assert merged is model
        torch.testing.assert_close(logits(merged, inputs), expected, atol=1e-4, rtol=1e-4)
        assert not [name for name, _ in merged.named_modules() if "lora" in name or "modules_to_save" in name]

    @four_families
    def test_all_linear_leaves_the_prompts_alone(self, family: str) -> None:
        model, processor = attached_family(family)
        before = [name for name, _ in model.vpp.named_modules()]

        with pytest.warns(UserWarning, match=r"match 2 layers of VPP, which are left as they are: .*modules_to_save"):
            peft = get_peft_model(model, LoraConfig(target_modules="all-linear"))

        assert [name for name, _ in model.vpp.named_modules()] == before
        assert not [name for name in trainable(peft) if ".vpp." in name]
        assert [name for name in trainable(peft) if "lora_" in name]
        inputs = family_inputs(processor, [1])
        assert torch.equal(logits(peft, inputs), logits(attached_family(family)[0], inputs))


class TestAllLinear:
    def test_with_modules_to_save_nothing_has_to_be_left_out(self) -> None:
        """PEFT itself keeps its layers out of what it saves whole, so nothing warns."""
        model, _ = attached()

        peft = get_peft_model(model, LoraConfig(target_modules="all-linear", modules_to_save=["vpp"]))

        assert not [name for name in trainable(peft) if ".vpp." in name and "lora_" in name]
        assert {name for name in trainable(peft) if ".vpp.modules_to_save" in name}

    def test_exclude_modules_says_that_they_stay_frozen(self) -> None:
        model, _ = attached()

        peft = get_peft_model(model, LoraConfig(target_modules="all-linear", exclude_modules=r"vpp\..*"))

        assert not [name for name in trainable(peft) if ".vpp." in name]

    def test_a_second_adapter(self) -> None:
        """PEFT does not tell the host of it, so the prompts are put right when they are used."""
        model, processor = attached()
        before = [name for name, _ in model.vpp.named_modules()]
        peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        peft.add_adapter("second", LoraConfig(target_modules="all-linear"))

        with pytest.warns(UserWarning, match="match 2 layers of VPP"):
            peft(**inputs_for(processor, [1]))

        assert [name for name, _ in model.vpp.named_modules()] == before

    def test_what_was_saved_loads_again(self, tmp_path: Path) -> None:
        model, processor = attached()
        with pytest.warns(UserWarning, match="match 2 layers of VPP"):
            peft = get_peft_model(model, LoraConfig(target_modules="all-linear"))
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.data += 0.1
        inputs = inputs_for(processor, [1])
        peft.save_pretrained(tmp_path)

        with pytest.warns(UserWarning, match="match 2 layers of VPP"):
            again = PeftModel.from_pretrained(attached()[0], tmp_path)

        assert torch.equal(logits(again, inputs), logits(peft, inputs))


class TestDroppedPrompts:
    """A PEFT adapter with VPP's weights on a bare host: PEFT says nothing, so we do, wherever we are asked first."""

    @pytest.fixture
    def bare(self, tmp_path: Path) -> PeftModel:
        model, _ = attached()
        lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"])
        get_peft_model(model, lora).save_pretrained(tmp_path)
        return PeftModel.from_pretrained(tiny_llava(), tmp_path)

    @pytest.mark.parametrize(
        "call",
        [
            lambda model: attach_vpp(model, toy_config()),
            lambda model: VPPProcessor(tiny_processor(), model),
            lambda model: Grounder(model, tiny_processor()),
            lambda model: vpp_disabled(model).__enter__(),
            lambda model: save_vpp(model, "nowhere"),
        ],
        ids=["attach_vpp", "VPPProcessor", "Grounder", "vpp_disabled", "save_vpp"],
    )
    def test_is_missed(self, call: Any, bare: PeftModel) -> None:
        sentence = (
            r"the PEFT adapter 'default' holds VPP's weights \(modules_to_save=\['vpp'\]\), but was put on a "
            "LlavaForConditionalGeneration without VPP, where PEFT drops them silently: call attach_vpp on the host"
        )

        with pytest.raises(VPPError, match=sentence):
            call(bare)
        assert not is_attached(bare)

    def test_the_other_order_is_right(self, bare: PeftModel, tmp_path: Path) -> None:
        model = PeftModel.from_pretrained(attached()[0], tmp_path)

        assert is_attached(model)
        Grounder(model, tiny_processor())

    def test_a_host_that_was_attached_and_merged_may_be_attached_again(self) -> None:
        model, _ = attached()
        merged = get_peft_model(model, LORA["modules_to_save"]).merge_and_unload()

        attach_vpp(detach_vpp(merged), toy_config())

        assert is_attached(merged)
