"""Parameter groups: VPP-LLaVA's learning rates parameter by parameter, nothing lost, nothing twice, through PEFT."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.reference import reference
from tests.tiny import attached, inputs_for, tiny_llava, toy_config
from vpp_adapters.vpp_llava.config import new_name
from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, VPPError, attach_vpp, hookimpl
from vpp_plugins.attach.attach import host_state
from vpp_plugins.plugins.registry import manager
from vpp_plugins.prompts.generators.backbone import TimmBackbone
from vpp_plugins.prompts.generators.detr import DETR
from vpp_plugins.train.groups import PARTS, PRESETS, Part, choose_parts, parameter_groups

RECORDED = reference("param_groups")
UNFROZEN, FROZEN = "unfreeze_vit(con_sft.sh)", "frozen_vit(con_sft_ablation.sh)"


class RecordedDetector:
    """The detector of the recorded model: one, two, two and one blocks, two encoder and two decoder layers."""

    @hookimpl
    def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
        if name != "recorded":
            return None
        backbone = TimmBackbone("resnet101", layers=(1, 2, 2, 1), channels=(8, 8, 8, 8))
        return DETR(
            backbone,
            backbone.channels,
            num_queries=num_queries,
            width=16,
            heads=2,
            feedforward=8,
            encoder_layers=2,
            decoder_layers=2,
        )


@pytest.fixture
def recorded_model() -> Iterator[Any]:
    """A model with the recorded one's modules, and so its names; sizes are smaller."""
    manager().register(RecordedDetector(), "recorded")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=3, image_size=28, patch_size=14, **sizes),
        text_config=LlamaConfig(vocab_size=16, num_hidden_layers=2, **sizes),
        image_token_id=4,
        tie_word_embeddings=False,
    )
    local = LocalVPPConfig(generator="recorded", num_queries=3, image_size=64, projector_size=8)
    yield attach_vpp(
        LlavaForConditionalGeneration(config),
        VPPConfig(global_vpp=GlobalVPPConfig(size=28, border=3), local_vpp=local),
    )
    manager().unregister(name="recorded")


def rates(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by parameter name; fails where a parameter comes twice."""
    names = {id(p): n.replace("vision_tower.vision_model.", "vision_tower.") for n, p in model.named_parameters()}
    grouped = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(grouped) == len(dict(grouped))
    return dict(grouped)


def recorded_rates(run: str) -> dict[str, tuple[float, float]]:
    return {new_name(name): (group["lr"], group["weight_decay"]) for group in RECORDED[run] for name in group["names"]}


@pytest.mark.parametrize(("run", "freeze"), [(UNFROZEN, []), (FROZEN, ["vision"])], ids=["unfrozen", "frozen"])
def test_the_references_rates_parameter_by_parameter(recorded_model: Any, run: str, freeze: list[str]) -> None:
    groups = parameter_groups(recorded_model, choose_parts("reference", freeze=freeze))
    assert rates(recorded_model, groups) == recorded_rates(run)


def test_the_papers_rates_differ_where_the_page_says(recorded_model: Any) -> None:
    """All of DETR at 2e-5, and the projector's biases as its weights; the rest is the same."""
    ours = rates(recorded_model, parameter_groups(recorded_model, choose_parts("paper")))
    theirs = recorded_rates(UNFROZEN)

    changed = {name: (theirs[name][0], ours[name][0]) for name in theirs if ours[name] != theirs[name]}

    assert ours.keys() == theirs.keys()
    assert {name.split(".")[2] for name in changed} == {"generator", "projector"}
    assert {change for name, change in changed.items() if ".generator." in name} == {(1e-5, 2e-5)}
    assert {change for name, change in changed.items() if ".generator." not in name} == {(2e-5, 2e-4)}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_trainable_parameter_is_in_one_group(toy: None, preset: str) -> None:
    model, _ = attached()

    groups = parameter_groups(model, choose_parts(preset))

    assert rates(model, groups).keys() == {n.replace("vision_model.", "") for n, _ in model.named_parameters()}
    assert {group["name"].removesuffix(" vectors") for group in groups} == set(PARTS) - {"lora"}
    assert len({group["name"] for group in groups}) == len(groups)
    torch.optim.AdamW(groups)  # refuses a parameter that comes twice


@pytest.mark.parametrize("part", [part for part in PARTS if part != "lora"])
def test_a_frozen_part_gets_no_gradient_and_no_group(toy: None, part: str) -> None:
    model, _ = attached()

    groups = parameter_groups(model, choose_parts(freeze=[part]))

    assert part not in {group["name"].removesuffix(" vectors") for group in groups}
    assert rates(model, groups).keys() == {
        n.replace("vision_model.", "") for n, p in model.named_parameters() if p.requires_grad
    }
    assert any(not p.requires_grad for p in model.parameters())


def test_freezing_is_undone_for_the_prompts_only(toy: None) -> None:
    """Whoever freezes the host, as PEFT does, means it; the prompts are there to be trained."""
    model, _ = attached()
    model.requires_grad_(False)

    groups = parameter_groups(model, choose_parts())

    assert {group["name"].split(".")[0] for group in groups} == {"vpp"}


def test_vectors_never_decay(toy: None) -> None:
    model, _ = attached()
    parts = {name: Part(lr=1e-3, weight_decay=0.1) for name in PARTS}

    decays = {p: group["weight_decay"] for group in parameter_groups(model, parts) for p in group["params"]}

    assert {p.ndim < 2 for p, decay in decays.items() if decay == 0} == {True}
    assert {p.ndim < 2 for p, decay in decays.items() if decay == 0.1} == {False}


def test_tied_tables_come_once(toy: None) -> None:
    model, _ = attached(tiny_llava(tied=True))
    rates(model, parameter_groups(model, choose_parts()))


class TestPeft:
    @pytest.mark.parametrize("order", ["attach first", "peft first"])
    def test_lora_and_prompts_learn_and_the_host_does_not(self, toy: None, order: str) -> None:
        lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["vpp"] if order == "attach first" else None)
        if order == "attach first":
            model: Any = peft.get_peft_model(attached()[0], lora)
        else:
            model = attach_vpp(peft.get_peft_model(tiny_llava(), lora), toy_config())

        groups = parameter_groups(model, choose_parts())

        learned = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {group["name"].split(".")[0] for group in groups} == {"lora", "vpp"}
        assert rates(model, groups).keys() == learned
        assert not any("original_module" in name for name in learned)
        assert {g["name"]: g["lr"] for g in groups}["lora"] == 2e-4

    def test_a_saved_copy_of_a_host_module_keeps_its_part(self, toy: None) -> None:
        lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["multi_modal_projector"])
        model = peft.get_peft_model(attached()[0], lora)

        groups = parameter_groups(model, choose_parts())

        assert {group["name"].split(".")[0] for group in groups} == {"lora", "projector", "vpp"}


def test_prompts_learn_in_float32_and_not_in_bfloat16(toy: None) -> None:
    """What the page says: beside a bfloat16 host the prompts should be float32, or the axes' steps round to nothing."""
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        model, processor = attached(tiny_llava().bfloat16())
        model.vpp.to(dtype)
        inputs = inputs_for(processor, [1, 2], dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(parameter_groups(model, choose_parts()))
        prompt = model.vpp.global_vpp.prompt
        before = prompt.detach().clone()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        learns = (prompt.grad != 0) & (before.abs() > 1)
        moved[dtype] = float((prompt != before)[learns].float().mean())

    assert moved == {torch.bfloat16: 0, torch.float32: 1}


class TestMistakes:
    def test_a_part_without_a_rate(self, toy: None) -> None:
        parts = {name: part for name, part in choose_parts().items() if name != "projector"}
        with pytest.raises(VPPError, match=r"linear_1.weight' is to be trained, but no learning rate .* 'projector'"):
            parameter_groups(attached()[0], parts)

    def test_one_parameter_in_two_parts(self, toy: None) -> None:
        model, _ = attached()
        tower, language = model.model.vision_tower, model.model.language_model
        norm = next(module for module in tower.modules() if isinstance(module, nn.LayerNorm))
        language.norm.weight = norm.weight
        with pytest.raises(VPPError, match="are one parameter, but belong to 'vision' and 'llm'"):
            parameter_groups(model, choose_parts())

    def test_nothing_to_train(self, toy: None) -> None:
        with pytest.raises(VPPError, match="nothing is left to train"):
            parameter_groups(attached()[0], choose_parts(freeze=PARTS))

    @pytest.mark.parametrize(
        ("choice", "complaint"),
        [
            ({"preset": "papers"}, "no preset is called 'papers'. Did you mean 'paper'"),
            ({"freeze": ["vison"]}, "no part is called 'vison'. Did you mean 'vision'"),
            ({"lr": {"vpp.locl": 1e-4}}, "no part is called 'vpp.locl'. Did you mean 'vpp.local'"),
        ],
    )
    def test_names_that_do_not_exist(self, choice: dict[str, Any], complaint: str) -> None:
        with pytest.raises(VPPError, match=complaint):
            choose_parts(**choice)

    def test_a_model_without_prompts(self) -> None:
        with pytest.raises(VPPError, match="not attached"):
            parameter_groups(tiny_llava(), choose_parts())


def test_another_rate_is_for_vectors_too() -> None:
    assert choose_parts(lr={"vpp.projector": 1e-3})["vpp.projector"] == Part(lr=1e-3)
    assert PRESETS["reference"]["vpp.projector"] == Part(lr=2e-4, vector_lr=2e-5)


def test_one_step_moves_each_part_at_its_rate(toy: None) -> None:
    """SGD moves a parameter by its rate times its gradient."""
    model, _ = attached()
    groups = parameter_groups(model, choose_parts())
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    torch.optim.SGD(groups).step()

    moved = {name: float((before[name] - value).max()) for name, value in model.state_dict().items()}
    assert moved["vpp.local_prompt.projector.0.weight"] == pytest.approx(2e-4, rel=0.01)
    assert moved["vpp.local_prompt.projector.0.bias"] == pytest.approx(2e-5, rel=0.01)
    assert moved["model.multi_modal_projector.linear_1.weight"] == pytest.approx(2e-5, rel=0.02)
    assert host_state(model).backbone.adapter == "llava"
