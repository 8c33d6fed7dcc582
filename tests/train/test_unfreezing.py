"""Parts that begin frozen: they move from their share of the steps on, also over a kill, and end the kept encodings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.families import FAMILIES
from tests.train.runs import recipe, run_llava, samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import train
from vpp_plugins.train.unfreezing import Unfreezing

pytestmark = pytest.mark.usefixtures("toy")
HALF = {"vpp": {"global": 0.5}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", samples(8))


def axes(folder: Path) -> torch.Tensor:
    prompts = load_file(folder / "vpp.safetensors")
    (name,) = [name for name in prompts if name.startswith("global_prompt")]
    return prompts[name]


def test_a_part_moves_from_its_share_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = run_llava(data, out, max_steps=4, save_steps=1, unfreeze=HALF)
    seen = [axes(out / f"checkpoint-{step}") for step in (1, 2, 3, 4)]

    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], axes(trained.folder))


def test_a_killed_run_ends_the_same(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = axes(run_llava(data, out, save_steps=1, unfreeze=HALF).folder)
    for left in ("final", "checkpoint-4"):
        (out / left).rename(tmp_path / f"gone-{left}")
    assert torch.equal(
        axes(run_llava(data, out, save_steps=1, unfreeze=HALF, resume_from_checkpoint="auto").folder), whole
    )


def test_kept_encodings_end_where_the_axes_begin_to_learn(data: Path, tmp_path: Path) -> None:
    frozen = {"freeze": ["vision", "vpp.local"], "unfreeze": HALF}
    plain = run_llava(data, tmp_path / "plain", **frozen)
    kept = run_llava(data, tmp_path / "kept", cache_encodings=str(tmp_path / "encodings"), **frozen)

    torch.testing.assert_close(axes(kept.folder), axes(plain.folder), rtol=1e-3, atol=1e-4)


def test_a_control_goes_the_same_way(data: Path, tmp_path: Path) -> None:
    family = FAMILIES["llava"]
    asked = recipe(data, tmp_path / "run", vpp="none", unfreeze=HALF, freeze=["vision"], max_steps=4)
    assert train(asked, model=family.model(), processor=family.processor()).steps == 4
    called: list[int] = []
    unfreezing = Unfreezing([], {"vpp.global": 0.5})
    unfreezing.at_first = lambda: called.append(1)
    for step in range(4):
        state = type("State", (), {"global_step": step, "max_steps": 4})()
        unfreezing.on_step_begin(None, state, None)

    assert called == [1]


def test_what_begins_to_learn_must_get_a_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    unfreezing = Unfreezing([{"name": "vision vectors", "params": [weight]}], {"vision": 0.0})
    assert not weight.requires_grad
    unfreezing.on_step_begin(None, type("State", (), {"global_step": 0, "max_steps": 4})(), None)
    assert weight.requires_grad

    with pytest.raises(VPPError, match="'vision vectors' is to be trained, but has no gradient"):
        unfreezing.on_pre_optimizer_step(None, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unfreeze": {"vpp": {"global": 2}}}, r"unfreeze\.vpp\.global should be a share of the steps from 0 to 1"),
        ({"unfreeze": {"vpp": {"globl": 0.5}}}, r"no part of a model is called 'vpp\.globl'"),
        ({"unfreeze": HALF, "freeze": ["vpp.global"]}, "freeze and unfreeze both name 'vpp.global'"),
    ],
)
def test_faulty_entries_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(VPPError, match=said):
        Recipe.from_dict({"model": "m", "data": "d", "output_dir": "o", **changes})


def test_several_processes_are_refused() -> None:
    with pytest.raises(VPPError, match="unfreeze works on one process, but 2 share this run"):
        Unfreezing([], {"vision": 0.5}, processes=2)
