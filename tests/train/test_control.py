"""`vpp = "none"`: the host is trained alone, everything else equal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.families import FAMILIES, attached_family, family_inputs
from tests.train.runs import recipe, samples, write_data
from tests.train.test_recipes import no_images
from vpp_plugins import VPPError, detach_vpp, is_attached, save_vpp
from vpp_plugins.attach import attach_control
from vpp_plugins.data.scenes import drawn
from vpp_plugins.evaluate.models import load_grounder
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import preview_sample, train

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", samples(8))


def run(data: Path, out: Path, family: str = "llava", **changes: Any) -> Any:
    model, processor = FAMILIES[family].model(), FAMILIES[family].processor()
    return train(recipe(data, out, vpp="none", **changes), model=model, processor=processor)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_a_control_answers_as_the_bare_host_and_comes_off_again(family: str) -> None:
    model, processor = FAMILIES[family].model().eval(), FAMILIES[family].processor()
    inputs = family_inputs(processor, [1, 1])
    kind = type(model)
    with torch.no_grad():
        bare = model(**inputs).logits
        attach_control(model)
        controlled = model(**inputs).logits

    assert torch.equal(bare, controlled)
    assert is_attached(model)
    assert not list(model.vpp.parameters())
    assert type(detach_vpp(model)) is kind


def test_a_host_that_was_trained_with_prompts_is_no_fair_control(data: Path, tmp_path: Path) -> None:
    """SmolLM2's second stage ran without a word on the projector that had been aligned with prompts."""
    model, processor = attached_family("llava")
    with_prompts = train(recipe(data, tmp_path / "first", freeze=()), model=model, processor=processor).folder
    assert (with_prompts / "model.safetensors").is_file()

    with pytest.warns(UserWarning, match=r"was trained with the prompts that lie beside it, .* name a host"):
        train(recipe(data, tmp_path / "second", model=str(with_prompts), vpp="none"))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_trains_the_host_and_leaves_a_plain_model(data: Path, tmp_path: Path, family: str) -> None:
    before = FAMILIES[family].model().state_dict()
    trained = run(data, tmp_path / "run", family)

    names = {path.name for path in trained.folder.iterdir()}
    assert {"model.safetensors"} <= names
    assert not [name for name in names if "vpp" in name]
    after = type(FAMILIES[family].model()).from_pretrained(trained.folder).state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert "lr/llm" in trained.history[0]
    assert not [name for name in trained.history[0] if "vpp" in name]


def test_its_weights_are_evaluated_as_any_models(data: Path, tmp_path: Path) -> None:
    trained = run(data, tmp_path / "run")

    assert not is_attached(load_grounder(str(trained.folder), box_format="llava").model)


def test_a_killed_control_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole", save_steps=2)
    cut = tmp_path / "cut"
    run(data, cut, save_steps=2)
    for left in ("final", "checkpoint-4"):
        (cut / left).rename(tmp_path / f"gone-{left}")
    resumed = run(data, cut, save_steps=2, resume_from_checkpoint="auto")

    with pytest.raises(VPPError, match=r"holds no vpp\.safetensors"):
        train(recipe(data, cut, resume_from_checkpoint=str(cut / "checkpoint-2")), model=None, processor=None)
    ends = [load_file(trained.folder / "model.safetensors") for trained in (whole, resumed)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_with_prompts_does_not_go_on_as_a_control(data: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    train(recipe(data, tmp_path / "run"), model=model, processor=processor)

    with pytest.raises(VPPError, match=r'has prompts, but the recipe says vpp = "none"'):
        run(data, tmp_path / "run", resume_from_checkpoint="auto")


def test_with_lora_the_adapter_alone_is_left(data: Path, tmp_path: Path) -> None:
    trained = run(data, tmp_path / "run", lora_scope="llm", lora_r=2)

    names = {path.name for path in trained.folder.iterdir()}
    assert "adapter_model.safetensors" in names
    assert not [name for name in names if "vpp" in name]


def test_what_has_nothing_to_act_on_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"lr": {"vpp": {"projector": 1e-3}}, "local_vpp": {"num_queries": 2}, "freeze": ["vpp.global"]}
    run(data, tmp_path / "run", losses=["detection:0.1"], **rates)

    said = " ".join(capsys.readouterr().err.split())
    assert "Trained without prompts, so these have nothing to act on: local_vpp, vpp.projector, vpp.global, det" in said


def test_losses_that_need_no_prompts_stay() -> None:
    wanted = ["words:0.3", "pointing", "detection:0.1"]
    given = Recipe.from_dict({"model": "m", "data": "d", "output_dir": "o", "vpp": "none", "losses": wanted})

    assert given.loss_weights() == {"words": 0.3, "pointing": 1.0}
    assert given.switched_off() == ["detection"]


def test_a_control_has_no_prompts_to_save(tmp_path: Path) -> None:
    model = attach_control(FAMILIES["llava"].model())

    with pytest.raises(VPPError, match="a control without prompts"):
        save_vpp(model, tmp_path)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*vpp*"))


def test_an_attached_model_is_no_control(data: Path, tmp_path: Path) -> None:
    model, processor = attached_family("llava")
    with pytest.raises(VPPError, match=r"VPP is already attached"):
        attach_control(model)
    with pytest.raises(VPPError, match=r'vpp = "none", but the given model has VPP attached: call detach_vpp'):
        train(recipe(data, tmp_path / "run", vpp="none"), model=model, processor=processor)


def test_the_pocket_model_begins_alike_with_and_without(tmp_path: Path) -> None:
    from vpp_plugins.pocket import untrained_pocket

    (bare, _), (attached, _) = untrained_pocket(vpp=False), untrained_pocket()
    with_prompts = attached.state_dict()

    assert not is_attached(bare)
    assert all(torch.equal(value, with_prompts[name]) for name, value in bare.state_dict().items())


def test_previewing_a_control_shows_no_placeholder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "fetch_assets", no_images)
    scenes = {"model": "pocket", "data_format": "drawn-scenes", "max_samples": 2, "losses": ["coordinates"]}
    values = {"data": str(tmp_path), "output_dir": str(tmp_path / "run"), **scenes}
    shown = [str(preview_sample(Recipe.from_dict(values | more), 0)) for more in ({}, {"vpp": "none"})]

    assert ["<|vpp|>" in text for text in shown] == [True, False]
