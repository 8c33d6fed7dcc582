"""Every recipe in examples/recipes: it says what it costs, is valid, and trains a tiny model of its family."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.families import FAMILIES
from tests.train.runs import SIZE, write_data
from vpp_adapters.vpp_llava.vicuna import VICUNA_V1, with_axis_sentence
from vpp_plugins.attach.attach import unwrap
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.boxes import ImageMeta
from vpp_plugins.data.formats import Writing
from vpp_plugins.data.formats.conversations import write_conversations
from vpp_plugins.data.sample import Locate, Sample, Talk
from vpp_plugins.data.scenes import drawn
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.models import load_grounder
from vpp_plugins.train.collate import ChatWriter
from vpp_plugins.train.model import load_host
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")

FOLDER = Path(__file__).parents[2] / "examples/recipes"
RECIPES = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
HERE = {"use_cpu": True, "disable_tqdm": True, "dataloader_num_workers": 0, "dataloader_pin_memory": False}
ELSEWHERE = ("tf32", "fsdp")
"""Keys for GPUs or for several processes."""
ON_SCENES = ("pocket", "smollm2-align", "smollm2-lora")
"""Recipes that draw their data, with tests of their own."""
TOY: dict[str, Any] = {"generator": "toy", "num_queries": 4, "image_size": 64, "projector_size": 16}


def in_little(recipe: Recipe, data: Path, out: Path) -> Recipe:
    """The recipe at toy size, for two steps."""
    local = {name: value for name, value in dict(recipe.local_vpp).items() if name != "weights"}
    trainer = {name: value for name, value in recipe.trainer.items() if name not in ELSEWHERE}
    return replace(
        recipe,
        data=str(data),
        images=None,
        output_dir=str(out),
        global_vpp={**dict(recipe.global_vpp), "size": 32, "border": 4},
        local_vpp={**local, **TOY},
        trainer={**trainer, **HERE, "max_steps": 2, "save_steps": 2, "gradient_accumulation_steps": 1},
    )


@pytest.mark.parametrize("control", [False, True], ids=["with prompts", "without"])
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ON_SCENES])
def test_trains_a_tiny_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, control: bool) -> None:
    """And vpp = "none" its control, from the same data in the same words."""
    monkeypatch.chdir(FOLDER.parents[1])  # recipes name files from the repository's root
    recipe = Recipe.load(RECIPES[name])
    assert recipe.data_format == "vpp-sft"
    samples = [
        Sample(f"s{n}", f"{n % 4}.png", *SIZE, (Locate("the cup", ((1.0, 2.0, 30.0, 20.0),)), Talk("is it", "red cup")))
        for n in range(16)
    ]
    write_data(tmp_path, samples)
    write_conversations(samples, Writing(tmp_path / "data.json", family="llava"))
    family = FAMILIES[str(recipe.family)]
    model = family.model()
    recipe = in_little(recipe, tmp_path / "data.json", tmp_path / "out")
    recipe = replace(recipe, vpp="none") if control else recipe
    if control and name == "vpp-only":
        with pytest.raises(VPPError, match=r"nothing is left to train: its control .*`vpp eval run --disable-vpp`"):
            train(recipe, model=model, processor=family.processor())
        return

    trained = train(recipe, model=model, processor=family.processor())

    assert trained.steps == 2
    assert not trained.skipped
    assert (trained.folder / "vpp.safetensors").is_file() != control
    assert all(parameter.isfinite().all() for parameter in active_vpp(unwrap(model)).parameters())


def no_images(folder: object, progress: object) -> object:
    raise VPPError("There is no network.")


def test_the_pocket_model_begins_from_nothing_also_without_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe as it stands, two steps of two scenes of shapes, and on from the first of them: the same weights."""
    monkeypatch.setattr(drawn, "fetch_assets", no_images)
    here = {**HERE, "per_device_train_batch_size": 2, "max_steps": 2, "save_steps": 1, "data": str(tmp_path / "none")}
    changes = [f"{key}={json.dumps(value)}" for key, value in here.items()]
    out, again = tmp_path / "out", tmp_path / "again"

    trained = train(Recipe.load(RECIPES["pocket"], changes=[*changes, f"output_dir={out}"]))
    shutil.copytree(out / "checkpoint-1", again / "checkpoint-1")
    resumed = train(
        Recipe.load(RECIPES["pocket"], changes=[*changes, f"output_dir={again}", "resume_from_checkpoint=auto"])
    )

    assert trained.steps == resumed.steps == 2
    assert "There is no network" in capsys.readouterr().err
    for name in ("model.safetensors", "vpp.safetensors"):
        first, second = (load_file(run.folder / name) for run in (trained, resumed))
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    grounder = load_grounder(str(trained.folder), device="cpu")
    assert grounder(Image.new("RGB", (90, 50)), "the cup").text


def test_the_pocket_model_has_a_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "fetch_assets", no_images)
    here = {**HERE, "per_device_train_batch_size": 2, "max_steps": 1, "data": str(tmp_path / "none"), "vpp": "none"}
    changes = [*(f"{key}={json.dumps(value)}" for key, value in here.items()), f"output_dir={tmp_path / 'out'}"]

    folder = train(Recipe.load(RECIPES["pocket"], changes=changes)).folder

    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob("vpp*"))


@pytest.mark.parametrize("name", list(RECIPES))
def test_says_what_it_costs_in_its_first_lines(name: str) -> None:
    head = [line for line in RECIPES[name].read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    assert [word for word in ("Memory:", "Time:", "Result:") if word not in "\n".join(head)] == []


def test_the_template_beside_them_is_vpp_llavas() -> None:
    assert (FOLDER / "vicuna_v1.jinja").read_text() == VICUNA_V1


def test_the_axis_sentence_is_where_the_reference_puts_it() -> None:
    """Once, behind the first question, whatever it asks, also in text alone."""
    turns = (Talk("is it red", "yes"), Locate("the cup", ((1.0, 2.0, 30.0, 20.0),)))
    sample = Sample("s", "0.png", *SIZE, turns)
    plain = ChatWriter("llava")(sample, ImageMeta((SIZE[1], SIZE[0])))

    assert ChatWriter("vpp-llava")(sample, ImageMeta((SIZE[1], SIZE[0]))) == with_axis_sentence(plain)
    alone = Sample("t", "", 0, 0, turns[:1])
    assert ChatWriter("vpp-llava")(alone, None) == with_axis_sentence(ChatWriter("llava")(alone, None))


@pytest.mark.parametrize("change", ["dtype=bfloat16", "load_in_4bit=true", "vpp=prompts"])
def test_the_pocket_model_takes_nothing_that_belongs_to_loading(tmp_path: Path, change: str) -> None:
    recipe = Recipe.load(RECIPES["pocket"], changes=[change, f"output_dir={tmp_path}"])

    with pytest.raises(VPPError, match=f"so {change.split('=')[0]} has nothing to act on"):
        load_host(recipe)
