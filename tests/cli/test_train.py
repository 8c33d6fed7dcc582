"""`vpp train` and `vpp data preview`, from a recipe and a model on the disk."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.families import FAMILIES
from tests.train.runs import samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.cli.data import preview
from vpp_plugins.cli.train import train
from vpp_plugins.train.recipe import Recipe

pytestmark = pytest.mark.usefixtures("toy")

app = typer.Typer()
app.command()(train)
app.command()(preview)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    family = FAMILIES["llava"]
    family.model().save_pretrained(tmp_path / "host")
    family.processor().save_pretrained(tmp_path / "host")
    data = write_data(tmp_path / "data", samples(8))
    lines = [
        f'model = "{tmp_path / "host"}"',
        f'data = "{data}"',
        f'output_dir = "{tmp_path / "run"}"',
        "max_steps = 4",
        "save_steps = 2",
        "learning_rate = 1e-3",
        "use_cpu = true",
        "disable_tqdm = true",
        "dataloader_pin_memory = false",
        "global_vpp.size = 32",
        "global_vpp.border = 4",
        'local_vpp.generator = "toy"',
        "local_vpp.num_queries = 4",
        "local_vpp.image_size = 64",
    ]
    (tmp_path / "recipe.toml").write_text("\n".join(lines))
    return tmp_path / "recipe.toml"


def called(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_trains_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("max_steps = 2\n")

    assert "2 steps; the weights: " in called("train", recipe, tmp_path / "more.toml", "--set", "save_steps=1")
    with pytest.raises(VPPError, match="holds an earlier run"):
        called("train", recipe)
    assert "4 steps" in called("train", recipe, "--resume", "auto")
    assert (tmp_path / "run/report.html").is_file()
    continued = ["--set", f"vpp={tmp_path / 'run/final'}", "--set", f"output_dir={tmp_path / 'next'}"]
    assert "4 steps" in called("train", recipe, *continued)


def test_the_preview_is_what_training_shows(recipe: Path) -> None:
    told = called("preview", recipe, "--index", "0")
    assert "⟦" in told
    assert "<|vpp|> x 4" in told
    assert told.strip() in called("train", recipe)
    with pytest.raises(VPPError, match="there is no sample 8"):
        called("preview", recipe, "--index", "8")


def test_the_help_teaches() -> None:
    told = called("train", "--help")
    assert all(word in told for word in ("lora_scope", "--resume", "TrainingArguments", "Example: vpp train"))
    keys = {key.name for key in fields(Recipe)} - {"trainer"}
    assert [key for key in keys if not re.search(rf"\b{key}\b", told)] == []


def test_a_model_that_is_not_there(recipe: Path) -> None:
    with pytest.raises(VPPError, match="could not be loaded as an image-text-to-text model"):
        called("train", recipe, "--set", "model=./nothing")
