"""What this machine lacks is said before anything is loaded, with what to set instead."""

import re
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from vpp_plugins import VPPError
from vpp_plugins.pocket import load_pocket
from vpp_plugins.train import machine
from vpp_plugins.train.machine import LORA, check_machine, forecast, parameters
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import train

SEVEN = "owner/Model-7B-Instruct"
HOST = ["llm", "projector", "vision"]


def recipe(**values: Any) -> Recipe:
    return Recipe.from_dict({"model": SEVEN, "data": "d", "output_dir": "o", "use_cpu": True, **values})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that lacks nothing, and a hub that has the model alone; returns what it was asked for."""
    names: list[str] = []

    def download(name: str, **_: Any) -> str:
        names.append(name)
        if name != SEVEN:
            raise LocalEntryNotFoundError("no network")
        return "."

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(machine, "_memory", lambda **_: 1e12)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return names


def test_bf16_without_a_gpu(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(machine, "_has_bf16", lambda: False)

    with pytest.raises(VPPError, match=r"no GPU here computes in bfloat16: .*--set use_cpu=true .*--dry-run"):
        train(recipe(bf16=True, use_cpu=False))
    check_machine(recipe(bf16=True))
    assert asked == [SEVEN]


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", 1), ("AVX512", 0)])
def test_bf16_on_a_cpu_that_is_slow_in_it(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], capability: str, warned: int
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_machine(recipe(bf16=True, use_cpu=True))

    assert ["no instructions for bfloat16" in str(one.message) for one in found] == [True] * warned


@pytest.mark.parametrize(
    ("values", "fits_in"),
    [({}, 15e9), ({"dtype": "float32"}, 29e9), ({"load_in_4bit": True}, 5e9), ({"fsdp": "full_shard"}, 1e9)],
)
def test_memory(values: dict[str, Any], fits_in: float, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "_memory", lambda **_: fits_in)
    check_machine(recipe(**values))
    monkeypatch.setattr(machine, "_memory", lambda **_: fits_in / 2)
    if "fsdp" in values:
        check_machine(recipe(**values))
        return
    with pytest.raises(VPPError, match=rf"the weights of '{SEVEN}' alone take about .* GB, and here are .* GB: take a"):
        check_machine(recipe(**values))


def test_what_cannot_be_fetched(asked: list[str]) -> None:
    local = {"weights": "owner/detector"}
    with pytest.raises(VPPError, match=r"local_vpp\.weights: 'owner/detector' is not here and could not be .* to none"):
        check_machine(recipe(local_vpp=local))
    check_machine(recipe(local_vpp=local, vpp="none"))
    with pytest.raises(VPPError, match=r"model: 'owner/other' is not here and could not be fetched .* --dry-run"):
        check_machine(recipe(model="owner/other"))


def test_four_bits_need_their_package(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(VPPError, match="pip install bitsandbytes, or --set load_in_4bit=false"):
        check_machine(recipe(load_in_4bit=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", 7e9),
        ("OpenGVLab/InternVL3-8B-hf", 8e9),
        ("llava-hf/llava-1.5-13b-hf", 13e9),
        ("owner/tiny-0.5B", 5e8),
        ("owner/tiny-500M", 5e8),
        ("owner/Model-7B-1M", 7e9),  # a million tokens of context
        ("owner/model", None),
    ],
)
def test_a_name_says_how_large_a_model_is(name: str, count: float | None) -> None:
    assert parameters(name) == count


def test_a_folder_says_so_by_its_files(tmp_path: Path) -> None:
    """Of float32 twice as many were counted: bytes were divided by two."""
    for part in (1, 2):
        save_file({"weight": torch.zeros(part, 10)}, tmp_path / f"model-{part}.safetensors")
    assert parameters(str(tmp_path)) == 30


def test_the_forecast_is_that_of_the_recipes_first_lines() -> None:
    """qwen2.5-vl-lora.toml: 16.6 GB of weights and 5 GB for 300 million numbers that learn, about a day."""
    path = Path(__file__).parents[2] / "examples/recipes/qwen2.5-vl-lora.toml"
    weights, memory, time = forecast(Recipe.load(path), 600_000)

    assert "Qwen/Qwen2.5-VL-7B-Instruct, facebook/detr-resnet-101" in weights
    assert "about 14.0 GB of weights, 4.0 GB for 247 million numbers that learn" in memory
    assert "about 17.5 hours on one H100 for 600,000 samples" in time
    assert "not reckoned" in forecast(recipe(model="owner/model"), 10)[-1]


@pytest.mark.parametrize(
    ("values", "learn"),
    [
        ({"local_vpp": {"generator": "nanodet"}}, 3 * 336**2 + (1113 + 4096) * 1024),
        ({"local_vpp": {"generator": "nanodet"}, "freeze": [*HOST, "vpp.global"]}, (1113 + 4096) * 1024),
        ({"local_vpp": False}, 3 * 336**2),
        ({"local_vpp": {"generator": "hf_detector", "generator_options": {"config": "owner/detector"}}}, 65e6),
        ({"vpp": "none", "lora_scope": "llm", "lora_r": 8}, 20e6),
        ({"vpp": "none", "lora_scope": "vision", "lora_r": 64}, 28e6),
        ({"vpp": "none", "lora_scope": "projector", "lora_r": 64}, 64 * (1024 + 3 * 4096)),
        ({"vpp": "none", "lora_scope": "all", "lora_r": 64}, 161e6 + 28e6 + 1e6),
        ({"vpp": "none", "lora_scope": "llm", "lora_r": 8, "freeze": []}, 20e6 + 21e6),
        ({"vpp": "none", "freeze": ["llm", "vision"]}, 21e6),
        ({"vpp": "none", "freeze": ["llm"]}, 321e6),
        ({"vpp": "none", "freeze": ["vision"]}, 6.7e9),
    ],
)
def test_what_learns_is_counted(values: dict[str, Any], learn: float) -> None:
    """65 million numbers of prompts were assumed, whatever the detector; LoRA anywhere was as large as on the model."""
    values = {"freeze": HOST, **values}
    said = re.search(r"for ([\d,]+)( million)? numbers that learn", forecast(recipe(**values), 1)[1])
    assert said is not None
    assert int(said[1].replace(",", "")) * (1e6 if said[2] else 1) == pytest.approx(learn, rel=0.01)


@pytest.mark.parametrize(("first", "share"), [(0, 1.0), (20, 1 / 3)])
def test_lora_from_a_layer_on_is_counted_from_there(first: int, share: float, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1000, 1000)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 128, "num_hidden_layers": 30}}')
    lora = {"vpp": "none", "lora_scope": "llm", "lora_r": 64, "lora_first_layer": first, "freeze": ["projector"]}
    said = forecast(recipe(model=str(tmp_path), **lora), 1)[1]
    assert f"for {64 * LORA * 1e6 * share:,.0f} numbers that learn" in said


def test_a_model_that_lies_here_says_its_width(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(10)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 128}}')
    local = {"generator": "nanodet", "projector_size": 256}
    said = forecast(recipe(model=str(tmp_path), freeze=[*HOST, "vpp.global"], local_vpp=local), 1)[1]
    assert f"for {1114 * 256 + 257 * 128:,} numbers that learn" in said


def test_what_is_frozen_of_a_host_that_lies_here_does_not_learn(tmp_path: Path) -> None:
    """The frozen vision encoder of the tutorial's host was counted: 4.7 million numbers for 1.6 million."""
    for part in load_pocket(vpp=False):
        part.save_pretrained(tmp_path)
    local = {"generator": "nanodet", "projector_size": 256}
    said = forecast(recipe(model=str(tmp_path), freeze=["vision", "vpp.global"], local_vpp=local), 1)[1]
    assert f"for {114_944 + 1_185_152 + 318_080:,} numbers that learn" in said


def test_time_is_in_the_unit_that_fits() -> None:
    """A short run took "0.0 hours"."""
    assert (
        "Time: less than a minute on one H100 for 10 samples"
        in forecast(recipe(num_train_epochs=1, use_cpu=False), 10)[-1]
    )
    assert "Time: about 18 minutes on one H100" in forecast(recipe(num_train_epochs=1, use_cpu=False), 7000)[-1]
    assert "Time: not reckoned for a CPU" in forecast(recipe(num_train_epochs=1), 7000)[-1]
