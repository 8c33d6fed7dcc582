"""LoRA's targets: each scope's linear layers and no others, on bare and attached hosts, and never the prompts'."""

import re
from itertools import combinations

import peft
import pytest
import torch
from torch import nn

from tests.families import FAMILIES, attached_family, family_inputs
from tests.tiny import tiny_config, toy_config
from vpp_plugins import VPPError, attach_vpp
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.train.groups import lora_targets, part_of

every_family = pytest.mark.parametrize("name", list(FAMILIES))
SCOPES = ("llm", "vision", "projector")


def matched(model: nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


@every_family
def test_scopes_share_out_every_linear_layer_but_the_head(name: str) -> None:
    model = FAMILIES[name].model()

    scopes = {scope: matched(model, lora_targets(model, scope=scope)) for scope in SCOPES}

    assert all(not first & second for first, second in combinations(scopes.values(), 2))
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set().union(*scopes.values()) == linear - {"lm_head"} == matched(model, lora_targets(model, scope="all"))
    assert all(path.startswith("model.language_model.layers.") for path in scopes["llm"])
    assert all("proj" in path or "merger" in path for path in scopes["projector"])


@every_family
def test_a_scope_adapts_what_it_names_and_the_host_runs(name: str) -> None:
    model = FAMILIES[name].model()
    expected = {scope: matched(model, lora_targets(model, scope=scope)) for scope in SCOPES}
    inputs = family_inputs(FAMILIES[name].processor(), [1])

    for scope, paths in expected.items():
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=lora_targets(model, scope=scope)))
        found = {path for path, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
        assert found == paths
        assert torch.isfinite(adapted(**inputs).logits).all()
        adapted.unload()


@every_family
def test_an_attached_host_has_the_bare_hosts_targets(toy: None, name: str) -> None:
    bare = FAMILIES[name].model()
    attached, _ = attached_family(name)

    assert [lora_targets(attached, scope=s) for s in SCOPES] == [lora_targets(bare, scope=s) for s in SCOPES]


def test_the_prompts_stay_untouched_where_a_name_of_theirs_ends_like_the_hosts() -> None:
    """DETR and CLIP both have an `out_proj`: peft would shorten a list of the host's names to such endings."""
    bare = FAMILIES["llava"].model()
    pattern = lora_targets(bare, scope="all")
    attached = attach_vpp(bare, tiny_config())
    assert any(path.startswith("vpp.") and path.endswith(".out_proj") for path, _ in attached.named_modules())

    adapted = peft.get_peft_model(attached, peft.LoraConfig(r=2, target_modules=pattern, modules_to_save=["vpp"]))

    layers = [path for path, module in adapted.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert layers
    assert not any(".vpp." in path for path in layers)


def test_a_wrapped_host_is_looked_through() -> None:
    model = FAMILIES["llava"].model()

    assert lora_targets(nn.DataParallel(model)) == lora_targets(model)


def test_a_projector_within_its_encoder_is_no_vision() -> None:
    model = FAMILIES["qwen3_vl"].model()

    assert matched(model, lora_targets(model, scope="projector")) >= {
        "model.visual.merger.linear_fc1",
        "model.visual.deepstack_merger_list.0.linear_fc2",
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.tower.layer.weight", "vision"),
        ("model.tower", "vision"),
        ("model.tower.merger.bias", "projector"),
        ("model.tower_two.weight", "llm"),
        ("lm_head.weight", "llm"),
        ("vpp.global_prompt.prompt", "vpp"),
    ],
)
def test_the_longest_path_says_what_a_parameter_is(name: str, part: str) -> None:
    backbone = Backbone(
        adapter="mine",
        hidden_size=8,
        vision_encoders=("model.tower",),
        projectors=("model.tower.merger",),
        box_format="llava",
        frame="image",
    )

    assert part_of(name, backbone) == part


@every_family
def test_from_a_layer_on_those_before_it_are_left_out(name: str) -> None:
    model = FAMILIES[name].model()
    every, later = (matched(model, lora_targets(model, scope="all", first_layer=first)) for first in (0, 1))

    early = {path for path in every if path.startswith("model.language_model.layers.0.")}
    assert early
    assert later == every - early


@pytest.mark.parametrize(("scope", "first"), [("llm", 99), ("vision", 1)])
def test_a_layer_that_is_not_there_is_said(scope: str, first: int) -> None:
    with pytest.raises(VPPError, match=f"LoRA from layer {first} of the language model on has nothing to act on"):
        lora_targets(FAMILIES["llava"].model(), scope=scope, first_layer=first)


def test_an_unknown_scope_is_named_with_its_neighbour() -> None:
    with pytest.raises(
        VPPError, match=r"no LoRA scope is called 'visoin'\. Did you mean 'vision'\? Known: llm, vision"
    ):
        lora_targets(FAMILIES["llava"].model(), scope="visoin")


def test_a_scope_without_linear_layers_says_so(toy: None) -> None:
    backbone = Backbone(
        adapter="mine",
        hidden_size=24,
        vision_encoders=("model.vision_tower",),
        box_format="llava",
        frame="square",
    )
    model = attach_vpp(FAMILIES["llava"].model(), toy_config(), adapter=backbone)

    with pytest.raises(VPPError, match=r"the scope 'projector' holds no linear layers in this Llava.*'mine'"):
        lora_targets(model, scope="projector")
