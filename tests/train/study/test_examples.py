"""Every study in examples/studies is one, and Qwen2.5-VL's is run on a tiny model of its family."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.families.tiny_hosts import FAMILIES
from tests.train.runs import SIZE, write_data
from tests.train.study.conftest import RECIPE, toml
from tests.train.study.test_run import called
from vpp_plugins.data.formats import Writing
from vpp_plugins.data.formats.conversations import write_conversations
from vpp_plugins.data.sample import Locate, Sample
from vpp_plugins.train.study import Study, StudySet, plan, run_study, write_study_report

__all__ = ["called"]

ROOT = Path(__file__).parents[3]
STUDIES = {path.stem: path for path in sorted((ROOT / "examples/studies").glob("*.toml"))}
HERE = ("use_cpu", "disable_tqdm", "report_to", "dataloader_pin_memory", "per_device_train_batch_size")
LARGE = ("images", "gradient_accumulation_steps", "dataloader_num_workers", "gradient_checkpointing", "dtype", "bf16")


@pytest.mark.parametrize("name", list(STUDIES))
def test_is_a_study_that_says_what_it_costs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # studies name files from the repository's root
    study = Study.load(STUDIES[name])

    assert len(plan(study).splitlines()) == len(study.arms) * len(study.seeds) + 5
    head = STUDIES[name].read_text().split("\nrecipe")[0]
    assert all(word in head for word in ("Memory", "ime:", "Result:"))


@pytest.mark.usefixtures("toy")
def test_qwens_is_run_on_a_tiny_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: list[str]) -> None:
    """With LoRA: without prompts and with both, at a budget and at the end."""
    monkeypatch.chdir(ROOT)
    study = Study.load(STUDIES["qwen2.5-vl-lora"])
    recipe: dict[str, Any] = tomllib.loads(Path(study.recipe).read_text())
    monkeypatch.chdir(tmp_path)
    family = FAMILIES["qwen2_5_vl"]
    family.model().save_pretrained("host")
    family.processor().save_pretrained("host")
    samples = [
        Sample(f"s{n}", f"{n % 4}.png", *SIZE, (Locate("the cup", ((1.0, 2.0, 30.0, 20.0),)),)) for n in range(8)
    ]
    write_data(tmp_path, samples)
    write_conversations(samples, Writing(tmp_path / "data.json", family="llava"))
    recipe = {key: value for key, value in recipe.items() if key not in LARGE} | {key: RECIPE[key] for key in HERE}
    toys = {"generator": "toy", "num_queries": 4, "image_size": 64, "projector_size": 16}
    recipe |= {"model": "host", "data": "data.json", "lora_r": 2, "local_vpp": toys}
    Path("recipe.toml").write_text(toml({**recipe, "global_vpp": {"size": 32, "border": 4}}))
    little = replace(
        study,
        recipe="recipe.toml",
        arms={arm: study.arms[arm] for arm in ("none", "both")},
        contrasts=(("none", "both"),),
        seeds=(0,),
        budgets=(1,),
        settings={"max_steps": 2, "save_steps": 2},
        sets={"photos": StudySet(data="photos", limit=2, shuffled=False)},
    )

    run_study(little, say=lambda line: None)

    assert len(called) == 2 * 3
    assert "2 of 2 runs are finished." in write_study_report(little)[0].read_text()
    assert Path("out/studies/qwen2.5-vl-lora/none-0/run/step-1/adapter_config.json").is_file()
    assert not Path("out/studies/qwen2.5-vl-lora/none-0/run/final/vpp.safetensors").exists()
    assert Path("out/studies/qwen2.5-vl-lora/both-0/run/final/vpp.safetensors").is_file()
