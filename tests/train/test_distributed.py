"""What FSDP shards as a unit, and when it cannot. Runs of two processes are in test_two_processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.training_args import ParallelMode

from tests.families import FAMILIES, attached_family
from tests.train.runs import recipe
from vpp_plugins import VPPError
from vpp_plugins.train.distributed import check_sharding, check_whole, shard_by_units
from vpp_plugins.train.preflight import give_every_parameter_a_gradient
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import training_arguments

pytestmark = pytest.mark.usefixtures("toy")


def units(model: nn.Module, **chosen: str) -> set[str]:
    arguments = SimpleNamespace(fsdp_plugin_args=dict(chosen))
    shard_by_units(arguments, model)
    return set(arguments.fsdp_plugin_args["transformer_cls_names_to_wrap"].split(","))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_unit_is_in_the_model(family: str) -> None:
    """LLaVA names layers of CLIP's text tower, which it has not, and accelerate stops at those."""
    model, _ = attached_family(family)

    found = units(model)

    assert found <= {type(module).__name__ for module in model.modules()}
    assert "VPP" in found
    assert any("DecoderLayer" in name for name in found)


def test_a_recipes_own_choice_stands_and_without_fsdp_there_is_none() -> None:
    model, _ = attached_family("llava")
    without = SimpleNamespace(fsdp_plugin_args=None)

    shard_by_units(without, model)

    assert units(model, transformer_cls_names_to_wrap="LlamaDecoderLayer") == {"LlamaDecoderLayer"}
    assert without.fsdp_plugin_args is None


def test_fsdp_with_one_process_or_on_cpus_says_so(tmp_path: Path) -> None:
    alone = recipe(tmp_path, tmp_path, fsdp=True)
    several = SimpleNamespace(fsdp=True, parallel_mode=ParallelMode.DISTRIBUTED, device=torch.device("cpu"))

    with pytest.raises(VPPError, match="but one was started"):
        training_arguments(alone)
    with pytest.raises(VPPError, match="over GPUs alone"):
        check_sharding(several)
    several.device = torch.device("cuda")
    check_sharding(several)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim": "muon"}, 'optim = "muon" needs each weight whole'),
        ({"losses": ["words:0.3"]}, "the loss 'words' needs each weight whole"),
        ({"losses": ["detection:0.1"]}, "the loss 'detection' needs each weight whole"),
    ],
)
def test_what_needs_weights_whole_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    wanted, plain = recipe(tmp_path, tmp_path, **changes), recipe(tmp_path, tmp_path)
    fsdp = SimpleNamespace(fsdp=True, deepspeed_plugin=None)
    zero = SimpleNamespace(fsdp=None, deepspeed_plugin=SimpleNamespace(deepspeed_config={}))

    for arguments, name in ((fsdp, "FSDP"), (zero, "DeepSpeed")):
        with pytest.raises(VPPError, match=f"{said}, but {name} shards them"):
            check_whole(arguments, wanted)
        check_whole(arguments, plain)
    training_arguments(wanted)  # one process has all of it


def test_a_deepspeed_file_may_not_replace_the_parts_rates(tmp_path: Path) -> None:
    settings = {"optimizer": {"type": "AdamW"}, "scheduler": {}, "zero_optimization": {"stage": 2}}
    arguments = SimpleNamespace(fsdp=None, deepspeed_plugin=SimpleNamespace(deepspeed_config=settings))

    with pytest.raises(VPPError, match="the DeepSpeed file has optimizer and scheduler of its own"):
        check_whole(arguments, recipe(tmp_path, tmp_path))


def test_a_recipe_may_say_true_as_transformers_has_it() -> None:
    names = ["model=m", "data=d", "output_dir=o"]
    assert Recipe.load(changes=[*names, "fsdp=true"]).trainer["fsdp"] is True
    assert Recipe.load(changes=[*names, "fsdp=full_shard auto_wrap"]).trainer["fsdp"] == "full_shard auto_wrap"


def test_a_parameter_without_gradient_gets_zeros_and_the_others_keep_theirs() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    (used * 2).sum().backward()

    give_every_parameter_a_gradient([{"name": "vision", "params": [used, unused]}])

    assert torch.equal(used.grad, torch.full((2,), 2.0))
    assert torch.equal(unused.grad, torch.zeros(3))
