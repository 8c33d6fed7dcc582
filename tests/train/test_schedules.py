"""Each part's own schedule: transformers' numbers for each, one scheduler for all, and misspelt names refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from tests.families import attached_family
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.train.optim import schedule_names, scheduled
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import train

STEPS = 10


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=rates[0])  # some schedules end at a rate that they ask of the optimizer


def rates(chosen: torch.optim.Optimizer, scheduler: Any) -> list[list[float]]:
    """The rates of every group before each step."""
    found = []
    for _ in range(STEPS):
        found.append([group["lr"] for group in chosen.param_groups])
        chosen.step()
        scheduler.step()
    return found


def arguments(tmp_path: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **changes)


@pytest.mark.parametrize("name", schedule_names())
def test_each_group_goes_as_transformers_own(name: str, tmp_path: Path) -> None:
    extra = {"num_decay_steps": 3} if name == "warmup_stable_decay" else {"min_lr": 1e-4} if "min_lr" in name else {}
    settings = arguments(tmp_path, warmup_steps=3, lr_scheduler_type=name, lr_scheduler_kwargs=extra)
    alone, both = optimizer(0.1), optimizer(0.1, 0.2)

    theirs = get_scheduler(name, alone, 3, STEPS, settings.lr_scheduler_kwargs)
    ours = scheduled(both, settings, steps=STEPS, names=[None, "constant"])

    expected = [first for (first,) in rates(alone, theirs)]
    found = rates(both, ours)
    assert [first for first, _ in found] == expected
    assert {second for _, second in found} == {0.2}


def test_it_goes_on_from_its_state(tmp_path: Path) -> None:
    settings = arguments(tmp_path, warmup_steps=0)
    names = ["cosine", "linear"]
    whole, begun, resumed = (optimizer(0.1, 0.2) for _ in range(3))
    expected = rates(whole, scheduled(whole, settings, steps=STEPS, names=names))
    first = scheduled(begun, settings, steps=STEPS, names=names)
    for _ in range(4):
        begun.step()
        first.step()

    second = scheduled(resumed, settings, steps=STEPS, names=names)
    resumed.load_state_dict(begun.state_dict())
    second.load_state_dict(first.state_dict())

    assert rates(resumed, second)[: STEPS - 4] == expected[4:]


@pytest.mark.usefixtures("toy")
def test_a_run_has_them_and_resumes(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(10))
    chosen = {"llm": "constant", "vpp": {"global": "cosine"}}

    def run(out: str, steps: int, **changes: Any) -> list[dict[str, float]]:
        model, processor = attached_family("llava")
        made = recipe(data, tmp_path / out, schedule=chosen, max_steps=6, save_steps=3, **changes)
        trained = train(made, model=model, processor=processor)
        return [row for row in trained.history if "loss" in row]

    whole = run("whole", 6)
    run("half", 6)
    for name in ("checkpoint-6", "final"):
        (tmp_path / "half" / name).rename(tmp_path / f"gone-{name}")
    resumed = run("half", 6, resume_from_checkpoint="auto")

    assert {row["lr/llm"] for row in whole} == {1e-3}
    assert whole[3]["lr/vpp.global"] == pytest.approx(0.5e-3)
    assert whole[3]["lr/vpp.projector"] == pytest.approx(0.5e-3)  # linear, the run's own
    assert whole[1]["lr/vpp.global"] > whole[1]["lr/vpp.projector"]
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("schedule.lm=cosine", "Did you mean 'llm'"),
        ("schedule.llm=cosin", "Did you mean 'cosine'"),
        ("schedule.llm=reduce_lr_on_plateau", "no schedule of a part is called 'reduce_lr_on_plateau'"),
        ("schedule.llm=3", "should be the name of a schedule, but is 3"),
        ("schedul.llm=cosine", "Did you mean 'schedule'"),
        ("schedule=cosine", "should be"),
    ],
)
def test_faulty_schedules_are_refused(change: str, said: str) -> None:
    with pytest.raises(VPPError, match=said):
        Recipe.load(changes=["model=m", "data=d", "output_dir=o", change])


def test_parts_may_stand_in_one_table_or_dotted() -> None:
    dotted = Recipe.load(changes=["model=m", "data=d", "output_dir=o", "schedule.vpp.global=cosine"])
    table = Recipe.from_dict({**dotted.to_dict(), "schedule": {"vpp": {"global": "cosine"}}})
    assert dotted.schedule == table.schedule == {"vpp.global": "cosine"}
    assert Recipe.from_dict(table.to_dict()) == table


@pytest.mark.parametrize("name", ["cosine_with_min_lr", "warmup_stable_decay"])
def test_a_schedule_that_needs_more_than_its_name_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(VPPError, match=f"the schedule '{name}' needs lr_scheduler_kwargs"):
        scheduled(optimizer(0.1), arguments(tmp_path), steps=STEPS, names=[name])


@pytest.mark.usefixtures("toy")
def test_the_table_of_what_is_trained_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", samples(4))

    def told(out: str, **changes: Any) -> str:
        model, processor = attached_family("llava")
        train(recipe(data, tmp_path / out, max_steps=1, **changes), model=model, processor=processor)
        return capsys.readouterr().err

    assert "schedule" not in told("plain")
    shown = told("own", schedule={"llm": "constant"})
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert "constant" in rows["llm"]
    assert "the run's" in rows["projector"]


def test_a_run_whose_own_schedule_follows_the_loss_takes_no_others(tmp_path: Path) -> None:
    settings = arguments(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")
    with pytest.raises(VPPError, match="no schedule of a part"):
        scheduled(optimizer(0.1, 0.1), settings, steps=STEPS, names=["cosine", None])
