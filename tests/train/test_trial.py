"""`--dry-run`: every recipe that ships, on somebody's own data, without weights, network or GPU."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests.train.runs import SIZE, write_data
from vpp_plugins import VPPError
from vpp_plugins.data.formats import Writing
from vpp_plugins.data.formats.conversations import write_conversations
from vpp_plugins.data.sample import Locate, Sample, Talk
from vpp_plugins.data.scenes import drawn
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.trial import dry_run

FOLDER = Path(__file__).parents[2] / "examples/recipes"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Changes that name somebody's own data; the hub is out of reach."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run fetches nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.chdir(FOLDER.parents[1])  # recipes name files from the repository's root
    turns = (Locate("the cup", ((1.0, 2.0, 30.0, 20.0),)), Talk("is it", "red cup"))
    samples = [Sample(f"s{n}", f"{n % 4}.png", *SIZE, turns) for n in range(6)]
    write_data(tmp_path, samples)
    write_conversations(samples, Writing(tmp_path / "data.json", family="llava"))
    return [f"data={tmp_path / 'data.json'}", f"images={tmp_path}", f"output_dir={tmp_path / 'out'}"]


@pytest.mark.parametrize(
    "name",
    [
        "qwen2.5-vl-lora",
        "vpp-llava",
        pytest.param("llava-1.5-qlora", marks=pytest.mark.slow),
        pytest.param("internvl3-lora", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_for_a_gpu_is_tried_in_little(name: str, data: list[str], tmp_path: Path) -> None:
    recipe = Recipe.load(FOLDER / f"{name}.toml", changes=data)
    run = dry_run(recipe)

    assert run.trained.steps == 2
    assert run.samples == 6
    assert "2 steps on a tiny random " in run.sentences[0]
    assert run.sentences[0].endswith("an evaluation ran.")
    assert [line.split(":")[0] for line in run.sentences[-3:]] == ["Weights", "Memory", "Time"]
    assert not (tmp_path / "out").exists()


def test_a_control_too(data: list[str]) -> None:
    run = dry_run(Recipe.load(FOLDER / "qwen3-vl-lora.toml", changes=[*data, "vpp=none"]))

    assert not [name for name in run.trained.history[0] if "vpp" in name]
    assert "facebook/detr" not in " ".join(run.sentences)


def test_chats_alone_are_not_evaluated(data: list[str], tmp_path: Path) -> None:
    made = [Sample(f"s{n}", f"{n % 4}.png", *SIZE, (Talk("is it", "red cup"),)) for n in range(4)]
    write_conversations(made, Writing(tmp_path / "chats.json", family="llava"))
    run = dry_run(Recipe.load(FOLDER / "vpp-only.toml", changes=[*data, f"data={tmp_path / 'chats.json'}"]))

    assert run.trained.steps == 2
    assert "; nothing was evaluated (" in run.sentences[0]


def test_what_needs_the_real_model_is_named(data: list[str]) -> None:
    changes = ['losses=["words:0.3", "coordinates"]', "hide_boxes=0.5", "vpp=owner/prompts"]
    run = dry_run(Recipe.load(FOLDER / "vpp-only.toml", changes=[*data, *changes]))

    assert run.sentences[1] == "Not tried here, as they need the real model: coordinates, hide_boxes, owner/prompts."


@pytest.mark.parametrize("name", ["smollm2-align", "smollm2-lora"])
def test_no_scene_images_are_fetched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "fetch_assets", None)
    write_data(tmp_path / "chats", [Sample("c", "", 0, 0, (Talk("is it", "red cup"),))])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    mix = [f'mix=[{{data="{tmp_path}/chats/data.jsonl"}}]'] if name == "smollm2-lora" else []
    run = dry_run(Recipe.load(FOLDER / f"{name}.toml", changes=mix))

    assert run.trained.steps == 2
    assert run.sentences[1] == "The scenes were of shapes, as the cut-outs are not in 'assets': the run fetches them."
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("family=none", "--set family=NAME, one of llava, "),
        ("family=qwen25_vl", "no tiny host of the family 'qwen25_vl' is known. Did you mean 'qwen2_5_vl'"),
    ],
)
def test_a_family_without_a_tiny_host(change: str, message: str, data: list[str]) -> None:
    with pytest.raises(VPPError, match=message):
        dry_run(Recipe.load(FOLDER / "qwen2.5-vl-lora.toml", changes=[*data, change]))
