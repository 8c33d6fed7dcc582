import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from vpp_plugins import VPPError
from vpp_plugins.train.study import Study, plan
from vpp_plugins.train.study.run import record
from vpp_plugins.train.study.runs import check_equal_data, runs

Load = Callable[..., Study]


def test_the_plan_has_a_line_for_each_run(study: Load) -> None:
    text = plan(study(budgets=[1], sets={"photos": {"data": "photos", "limit": 3}}))

    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 4
    first = [shlex.split(command) for command in lines[0].split(" && ")]
    assert first[0] == [
        *("vpp", "train", "recipe.toml", "--set", 'global_vpp={"alpha" = 0.99}', "--set", "seed=0"),
        *("--set", 'output_dir="out/faint-0/run"', "--set", "snapshots=[1]", "--resume", "auto"),
    ]
    asked = ["--data", "photos", "--limit", "3"]
    assert first[1:] == [
        ["vpp", "eval", "run", "--model", f"out/faint-0/run/{place}", *asked, *more, "--out", f"out/faint-0/eval/{out}"]
        for place, more, out in (
            ("step-1", [], "step-1/photos"),
            ("final", [], "final/photos"),
            ("final", ["--shuffled"], "final/photos-shuffled"),
        )
    ]
    assert "--array=1-4" in text


def test_prompts_alone_are_put_on_their_host(study: Load) -> None:
    frozen = study(base={"freeze": ["llm", "projector", "vision"]})
    (asked,) = (task for task in runs(frozen)[0].evaluations() if "--shuffled" not in task.words)
    assert asked.words[2:6] == ["--model", "host", "--vpp", "out/faint-0/run/final"]


def pretend(study: Study) -> None:
    """Leave what a finished study leaves, so far as it says whether it is done."""
    for run in runs(study):
        for task in run.tasks():
            task.folder.mkdir(parents=True)
            held = {task.inside: task.settings, "data_sha256": "d"} if task.inside else task.settings
            (task.folder / "run.json").write_text(json.dumps(held))
            (task.folder / task.result).touch()


def test_what_is_done_is_not_planned(study: Load) -> None:
    one = study(budgets=[1])
    pretend(one)
    assert plan(one).startswith("# 0 runs")
    (Path("out/strong-1/eval/final/photos/results.json")).unlink()

    (left,) = (line for line in plan(one).splitlines() if not line.startswith("#"))
    assert left.startswith("vpp eval run --model out/strong-1/run/final")
    assert "&&" not in left


def test_parts_of_other_settings_are_refused(study: Load) -> None:
    pretend(study())
    with pytest.raises(VPPError, match=r"'out/faint-0/run' was made with other settings .*\(max_steps: 2, now 4\)"):
        plan(study(base={"max_steps": 4}))
    with pytest.raises(VPPError, match=r"'out/faint-0/eval/final/photos' was made .*\(batch_size: 8, now 4\)"):
        plan(study(sets={"photos": {"data": "photos", "batch_size": 4}}))
    Path("out/faint-0/run/run.json").write_text("{")
    with pytest.raises(VPPError, match=r"run\.json' is damaged"):
        plan(study())


def test_other_data_are_refused_within_a_seed(study: Load) -> None:
    """Each seed may have data of its own, as scenes that are drawn."""
    one = study()
    pretend(one)
    check_equal_data(one)
    paths = [Path(f"out/{arm}-1/run/run.json") for arm in one.arms]
    for path in paths:
        path.write_text(path.read_text().replace('"d"', '"e"'))
    check_equal_data(one)
    paths[-1].write_text(paths[-1].read_text().replace('"e"', '"d"'))

    with pytest.raises(VPPError, match="the runs faint-1, strong-1 were trained on different data"):
        check_equal_data(one)


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_run_is_named(study: Load, damage: str) -> None:
    """`vpp study report` ended with a traceback."""
    one = study()
    pretend(one)
    Path("out/faint-0/run/run.json").write_text(damage)
    with pytest.raises(VPPError, match=r"'out/faint-0/run/run\.json' is damaged"):
        check_equal_data(one)


def test_two_studies_in_one_folder_are_refused(study: Load) -> None:
    record(study())
    record(study(seeds=[0, 1, 2], arms={"faint": {"global_vpp.alpha": 0.99}, "weak": {"global_vpp.alpha": 0.9}}))
    record(study())
    for changes, said in (
        ({"base": {"max_steps": 3}}, "recipe.max_steps is 2, and now 3"),
        ({"budgets": [1]}, r"budgets is \[\], and now \[1\]"),
        ({"settings": {"weight_decay": 0.1}}, "settings.weight_decay is None, and now 0.1"),
        ({"sets": {"photos": {"data": "photos", "limit": 3}}}, "sets.photos.limit is None, and now 3"),
        ({"arms": {"faint": {}, "weak": {"global_vpp.alpha": 0.9}}}, "arms.faint.global_vpp is"),
    ):
        with pytest.raises(VPPError, match=f"'out' holds another study: its {said}"):
            record(study(**changes))
    Path("out/study.json").write_text("{}}")
    with pytest.raises(VPPError, match=r"study\.json' is damaged"):
        record(study())
