"""Recipes: read, changed on the command line, and refused with the nearest key."""

from pathlib import Path
from typing import Any

import pytest

from vpp_plugins import VPPError
from vpp_plugins.train.groups import PARTS, PRESETS
from vpp_plugins.train.model import learning_rates
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import training_arguments

BASE = 'model = "m"\ndata = "d"\noutput_dir = "o"\n'


def load(tmp_path: Path, text: str = "", *changes: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(BASE + text)
    return Recipe.load(path, changes=changes)


def test_our_keys_and_transformers_stand_side_by_side(tmp_path: Path) -> None:
    recipe = load(tmp_path, 'max_steps = 7\nfreeze = ["llm"]\nglobal_vpp.alpha = 0.9\nlr.vpp.global = 1e-3\n')

    assert recipe.trainer == {"max_steps": 7}
    assert recipe.freeze == ("llm",)
    assert recipe.global_vpp == {"alpha": 0.9}
    assert recipe.lr == {"vpp.global": 1e-3}
    assert training_arguments(recipe).max_steps == 7


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("max_step=3", "'max_steps'"),
        ("lora_rank=3", "'lora_r'"),
        ("learning_rte=1e-4", "'learning_rate'"),
        ("datas=x", "'data'"),
        ("lr.vpp.globl=1e-4", "'vpp.global'"),
        ('freeze=["visoin"]', "'vision'"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest(key: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(VPPError, match=f"Did you mean {said}"):
        load(tmp_path, "", key)
    with pytest.raises(VPPError, match=f"Did you mean {said}"):
        load(tmp_path, key.replace("=x", '="x"'))


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("max_steps=2", "max_steps", 2),
        ("output_dir=out/x", "output_dir", "out/x"),
        ("output_dir=2026", "output_dir", "2026"),
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("bf16=true", "bf16", True),
        ('freeze=["llm","vision"]', "freeze", ("llm", "vision")),
        ("run_name=a = b", "run_name", "a = b"),
        ("eval_limit=5", "eval_limit", 5),
        ("global_vpp=false", "global_vpp", False),
    ],
)
def test_changes_are_typed(change: str, key: str, value: Any, tmp_path: Path) -> None:
    found = load(tmp_path, "", change).to_dict()[key]

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("change", ["max_steps=many", "bf16=1", "freeze=llm", "lr.llm=fast", "max_samples=1.5"])
def test_wrong_types_are_refused(change: str, tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="should be"):
        load(tmp_path, "", change)


def test_later_files_and_changes_win_and_tables_are_merged(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        BASE + 'max_steps = 1\nlocal_vpp.weights = "w"\nlocal_vpp.generator_options.width = 8\n'
    )
    (tmp_path / "b.toml").write_text(
        "max_steps = 2\nlocal_vpp.num_queries = 4\nlocal_vpp.generator_options.heads = 2\n"
    )

    recipe = Recipe.load(tmp_path / "a.toml", tmp_path / "b.toml", changes=["save_steps=3"])

    assert recipe.trainer == {"max_steps": 2, "save_steps": 3}
    assert recipe.local_vpp == {"weights": "w", "num_queries": 4, "generator_options": {"width": 8, "heads": 2}}
    assert Recipe.load(tmp_path / "a.toml", changes=["local_vpp=false"]).local_vpp is False


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("local_vpp.weights=none", "local_vpp"),
        ("local_vpp.generator_options.width=none", "local_vpp"),
        ("lora_scope=none", "lora_scope"),
        ("max_length=none", "max_length"),
        ("max_steps=none", "max_steps"),
        ("keep=none", "keep"),
        ('lr.vpp.local="none"', "lr"),
    ],
)
def test_none_clears_what_a_recipe_says(change: str, key: str, tmp_path: Path) -> None:
    said = {
        "local_vpp": 'local_vpp.weights = "w"\nlocal_vpp.generator_options.width = 8\n',
        "lora_scope": 'lora_scope = "llm"\n',
        "max_length": "max_length = 9\n",
        "max_steps": "max_steps = 9\n",
        "keep": 'keep.data = "chats.json"\n',
        "lr": "lr.vpp.local = 0.1\n",
    }[key]
    before, after = load(tmp_path, said).to_dict()[key], load(tmp_path, said, change).to_dict().get(key)

    left = {"local_vpp.weights=none": {"generator_options": {"width": 8}}}
    left["local_vpp.generator_options.width=none"] = {"weights": "w", "generator_options": {}}
    assert after == left.get(change)
    assert before != after


def test_none_means_itself_where_it_is_a_value(tmp_path: Path) -> None:
    recipe = load(tmp_path, 'vpp = "out/prompts"\nreport_to = "all"\n', "vpp=none", "report_to=none")

    assert (recipe.vpp, recipe.trainer["report_to"]) == ("none", "none")
    with pytest.raises(VPPError, match="the recipe's key 'global_vpp' should be"):  # to leave out, or to reset?
        load(tmp_path, "", "global_vpp=none")
    assert load(tmp_path, "", "data_family=none").data_family == "none"  # a name that the run then refuses


@pytest.mark.parametrize("name", ["vpp-only.toml", "examples/recipes/vpp-only.toml"])
def test_a_recipe_that_ships_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Recipe.load(name, "ablations/alpha-0.9.toml").global_vpp == {"alpha": 0.9}
    (tmp_path / "vpp-only.toml").write_text('model = "mine"\ndata = "d"\noutput_dir = "o"\n')
    assert (Recipe.load(name).model == "mine") == (name == "vpp-only.toml")


def test_what_a_recipe_must_say(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="names no data"):
        Recipe.from_dict({"model": "m", "output_dir": "o"})
    with pytest.raises(VPPError, match=r"no recipe '.*none\.toml'\. With the library come .*, pocket\.toml, "):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("model = \n")
    with pytest.raises(VPPError, match="not valid TOML"):
        Recipe.load(tmp_path / "bad.toml")
    with pytest.raises(VPPError, match="written key=value"):
        load(tmp_path, "", "max_steps")


def test_values_that_transformers_refuses_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match="transformers does not take the recipe"):
        training_arguments(load(tmp_path, "", "lr_scheduler_type=spiral"))


def test_gradient_checkpointing_is_never_re_entrant(tmp_path: Path) -> None:
    arguments = training_arguments(load(tmp_path, "gradient_checkpointing = true\n")).to_dict()

    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if arguments.get(n))
    assert arguments[f"{name}_kwargs"] == {"use_reentrant": False}


def test_rates_are_the_presets_until_a_recipe_says_otherwise(tmp_path: Path) -> None:
    assert learning_rates(load(tmp_path)) == PRESETS["reference"]
    assert learning_rates(load(tmp_path, 'learning_rates = "paper"\n')) == PRESETS["paper"]

    chosen = learning_rates(
        load(tmp_path, 'learning_rate = 1e-3\nlr.llm = 1e-5\nweight_decay = 0.1\nfreeze = ["vision"]\n')
    )

    assert {name: part.lr for name, part in chosen.items()} == {**dict.fromkeys(PARTS, 1e-3), "llm": 1e-5}
    assert {part.weight_decay for part in chosen.values()} == {0.1}
    assert [name for name, part in chosen.items() if part.freeze] == ["vision"]
