"""Muon: linear layers by it, all else by AdamW, the parts' rates and names kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.families import FAMILIES
from tests.tiny import attached, tiny_config, tiny_llava
from tests.train.runs import recipe, samples, toy_prompts, write_data
from vpp_plugins.attach.attach import attach_vpp
from vpp_plugins.train.groups import choose_parts, parameter_groups
from vpp_plugins.train.optim import ADAMW_SHARE, build_muon, muon_groups
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def model() -> Any:
    return attached(tiny_llava(tied=True), tiny_config())[0]


def test_every_parameter_is_in_one_group(model: Any) -> None:
    groups = parameter_groups(model, choose_parts())
    split = muon_groups(groups, model)

    before = [id(parameter) for group in groups for parameter in group["params"]]
    after = [id(parameter) for group in split for parameter in group["params"]]
    assert sorted(before) == sorted(after)
    assert len({group["name"] for group in split}) == len(split)


def test_muon_has_the_linear_layers_but_those_that_read_features_and_no_table(model: Any) -> None:
    split = muon_groups(parameter_groups(model, choose_parts()), model)
    by_muon = {id(p) for group in split if not group["use_fallback"] for p in group["params"]}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}

    table = id(model.get_input_embeddings().weight)  # the head too: they are tied
    readers = {id(model.model.multi_modal_projector.linear_1.weight), id(model.vpp.local_vpp.projector[0].weight)}
    assert by_muon == linear - {table} - readers


def test_parts_keep_their_rates_and_only_matrices_decay(model: Any) -> None:
    parts = choose_parts(lr={"llm": 3e-3})
    parts = {name: part.__class__(**{**vars(part), "weight_decay": 0.1}) for name, part in parts.items()}
    split = muon_groups(parameter_groups(model, parts), model)

    assert {group["lr"] for group in split if group["name"].split()[0] == "llm"} == {3e-3}
    assert {group["weight_decay"] for group in split if group["use_fallback"]} == {0.0}
    assert {group["weight_decay"] for group in split if not group["use_fallback"]} == {0.1}


def test_a_step_turns_matrices_and_moves_vectors_by_their_share_of_the_rate() -> None:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(6))
    began = vector.detach().clone(), matrix.detach().clone()
    rates = {"lr": 0.1, "weight_decay": 0.0}
    optimizer = build_muon(
        [
            {"name": "a", "params": [matrix], "use_fallback": False, **rates},
            {"name": "b", "params": [vector], "use_fallback": True, **rates},
        ]
    )
    matrix.grad, vector.grad = torch.randn(8, 4), torch.randn(6)
    optimizer.step()

    # whatever the gradient's size, AdamW's first step is its rate, and with Nesterov's look ahead 1 + beta times that
    moved = (vector - began[0]).abs().detach()
    torch.testing.assert_close(moved, torch.full((6,), 0.1 * ADAMW_SHARE * 1.9), rtol=1e-3, atol=0)
    turned = torch.linalg.svdvals((matrix - began[1]).detach())
    assert turned.max() < 2 * turned.min()  # all directions move alike


def test_a_run_with_muon_resumes_to_the_bit(tmp_path: Path) -> None:
    data = write_data(tmp_path, samples(8))
    changes = {"optim": "muon"}

    def run(name: str, **more: Any) -> dict[str, torch.Tensor]:
        model = attach_vpp(FAMILIES["llava"].model(), toy_prompts())
        train(recipe(data, tmp_path / name, **changes, **more), model=model, processor=FAMILIES["llava"].processor())
        return dict(model.state_dict())

    whole = run("whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole/checkpoint-2").rename(tmp_path / "broken/checkpoint-2")
    (tmp_path / "broken/run.json").write_bytes((tmp_path / "whole/run.json").read_bytes())
    resumed = run("broken", resume_from_checkpoint="auto")

    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
