import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.train.study.conftest import Written
from vpp_plugins import VPPError
from vpp_plugins.train.study import Study, StudySet, plan, run_study, write_study_report

Load = Callable[..., Study]
ARMS: dict[str, Any] = {"faint": {}, "strong": {"global_vpp.alpha": 0.5}}


def test_every_arm_is_the_recipe_with_its_settings(study: Load) -> None:
    arms = {"both": {}, "axes": {"local_vpp": False}, "small": {"local_vpp": {"generator_options": {"width": 8}}}}
    found = study(arms=arms, settings={"weight_decay": 0.1}, budgets=[1])

    small = found.resolved("small", 1)
    assert small.local_vpp == {"generator_options": {"width": 8}}
    assert (small.snapshots, small.output_dir) == ((1,), "out/small-1/run")
    assert (small.trainer["seed"], small.trainer["weight_decay"], small.trainer["max_steps"]) == (1, 0.1, 2)
    assert found.resolved("axes", 0).local_vpp is False
    assert found.contrasts == (("both", "axes"), ("both", "small"))


def test_settings_may_be_tables(study: Load) -> None:
    """Each key of lr_scheduler_kwargs took the place of the one before."""
    kwargs = {"num_decay_steps": 4, "min_lr_ratio": 0.1, "decay_type": "linear"}
    mix = [{"data": "a", "weight": 0.5}, {"data": "b", "weight": 1}]
    settings = {"lr_scheduler_kwargs": kwargs, "lr.vpp.local": 0.5, "local_vpp": {"num_queries": 8}}
    arms = {"one": {"mix": mix}, "two": {"local_vpp.generator": "toy"}}

    found = study(settings=settings, arms=arms, varies=["mix"])

    one, two = (found.resolved(arm, 0) for arm in arms)
    assert one.trainer["lr_scheduler_kwargs"] == kwargs
    assert (one.lr, one.mix) == ({"vpp.local": 0.5}, tuple(mix))
    assert (one.local_vpp, two.local_vpp) == ({"num_queries": 8}, {"num_queries": 8, "generator": "toy"})


def test_the_table_says_what_differs(study: Load) -> None:
    arms = {"both": {}, "axes": {"local_vpp": False}, "small": {"local_vpp.num_queries": 8}}

    assert study(arms=arms).table().splitlines() == [
        "                       both  axes   small",
        "local_vpp                    false",
        "local_vpp.num_queries               8",
    ]


def test_a_set_is_asked_as_its_options_say() -> None:
    asked = StudySet(data="d", format="eval-jsonl", batch_size=4, limit=300, curve=False)

    words = ["--data", "d", "--format", "eval-jsonl", "--batch-size", "4", "--limit", "300"]
    assert asked.options() == words
    assert asked.options(shuffled=True) == [*words, "--shuffled"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_steps", 1), ("data", "other.jsonl"), ("learning_rate", 0.1), ("lr.llm", 0.1), ("losses", ["words"])],
)
def test_arms_that_differ_where_they_should_not(study: Load, key: str, value: Any) -> None:
    arms = {"faint": {}, "strong": {"global_vpp.alpha": 0.5, key: value}}

    unfair = study(arms=arms)
    with pytest.raises(VPPError) as refused:
        unfair.check_arms()

    assert str(refused.value) == (
        f"the arms differ in {key}, beside their prompts, so their figures could not be compared: make them equal, or "
        f'say varies = ["{key}"] if that is what the study compares.'
    )
    head, *table = unfair.table().splitlines()
    assert [line.split()[0] for line in (head, *table)] == ["faint", *sorted(["global_vpp.alpha", key])]
    assert json.dumps(value) in "".join(table)
    study(arms=arms, varies=[key.partition(".")[0]]).check_arms()
    for refuse in (plan, write_study_report, partial(run_study, say=print)):
        with pytest.raises(VPPError, match=f"the arms differ in {key}"):
            refuse(unfair)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": {}}, "a study has no key 'arm'. Did you mean 'arms'?"),
        ({"seeds": None}, "names no seeds: add it"),
        ({"seeds": []}, "names no seeds: add it"),
        ({"seeds": ["0"]}, "the study's key 'seeds' is not as"),
        ({"seeds": [1, 1]}, "seeds are different numbers"),
        ({"seeds": [-1]}, "seeds are different numbers"),
        ({"arms": {"one": {}}}, "there is one only"),
        ({"arms": {"one": {}, "two": 3}}, "the arm 'two' should be a table"),
        ({"arms": {"one": {}, "two/3": {}}}, "'two/3' becomes the name of a folder"),
        ({"arms": {"one": {}, "two": {"seed": 3}}}, "the study gives every run its seed"),
        ({"settings": {"output_dir": "x"}}, "the study gives every run its output_dir"),
        ({"arms": {"one": {}, "two": {"globl_vpp": False}}}, "no key 'globl_vpp'. Did you mean 'global_vpp'?"),
        ({"budgets": [2, 1]}, "budgets are numbers of steps that rise"),
        ({"budgets": [0]}, "budgets are numbers of steps that rise"),
        ({"budgets": [1, 2]}, "the runs of arm 'faint' end after 2 steps"),
        ({"contrasts": [["faint"]]}, "a contrast is a pair"),
        ({"contrasts": [["faint", "faint"]]}, "a contrast is a pair"),
        ({"contrasts": [["faint", "stron"]]}, "the arm 'stron', which is none. Did you mean 'strong'?"),
        ({"sets": {"test": {"limit": 3}}}, "the evaluation set 'test' names no data"),
        ({"sets": {"test": {"data": "x", "limits": 3}}}, "no key 'limits'. Did you mean 'limit'?"),
        ({"sets": {"test": {"data": "x", "limit": 0}}}, "'limit' of the evaluation set 'test' cannot be 0"),
        ({"sets": {"test": {"data": "x", "protocol": "defalt"}}}, "Did you mean 'default'?"),
        ({"sets": {"test": {"data": "x", "protocol": "region-caption"}}}, "asks for words"),
        ({"base": {"losses": ["coordinates:0.5"]}}, "whose weight is 1, but is given 0.5"),
        ({"base": {"losses": ["pointin"]}}, "no loss is called 'pointin'. Did you mean 'pointing'?"),
        ({"arms": {"one": {}, "two": {"local_vpp": False, "losses": ["detection"]}}}, "(the loss 'detection')"),
        ({"arms": {"one": {}, "two": {"vpp": "none", "local_vpp.num_queries": 4}}}, "asks for its queries (local_vpp)"),
        ({"recipe": "nothing.toml"}, "there is no recipe 'nothing.toml'"),
    ],
)
def test_what_is_no_study_is_refused_in_a_sentence(study: Load, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(VPPError) as refused:
        study(**changes).check_arms()

    assert said in str(refused.value)


def test_the_control_leaves_out_the_losses_of_queries(study: Load) -> None:
    losses = study(base={"losses": ["detection"]}, arms={"none": {"vpp": "none"}, "both": {}})

    assert [losses.resolved(arm, 0).loss_weights() for arm in losses.arms] == [{}, {"detection": 1.0}]


@pytest.mark.parametrize(("text", "said"), [("seeds = [", "is not valid TOML"), (None, "there is no study")])
def test_a_file_that_is_none(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "study.toml").write_text(text)
    with pytest.raises(VPPError, match=said):
        Study.load(tmp_path / "study.toml")


def test_the_recipe_says_itself_what_is_wrong_with_it(written: Written) -> None:
    with pytest.raises(VPPError, match="key 'max_steps' should be"):
        Study.load(written(base={"max_steps": "two"}))
