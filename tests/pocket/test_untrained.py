"""The pocket model before training: random but for its tower's backbone and its detector, which never learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText

from vpp_plugins import Grounder, VPPProcessor, save_vpp
from vpp_plugins.attach.attach import attach_vpp
from vpp_plugins.pocket import build_pocket, pocket_config, untrained_pocket
from vpp_plugins.pocket.untrained import SIZE, start_with_boxes
from vpp_plugins.pocket.vision import make_constant, register_pocket
from vpp_plugins.pocket.weights import load_backbone
from vpp_plugins.train.groups import choose_parts, parameter_groups


@pytest.fixture(scope="module")
def pocket() -> tuple[Any, VPPProcessor]:
    model, processor = untrained_pocket()
    wrapped = VPPProcessor(processor, model)
    model.vpp.trained = True
    return model, wrapped


def inputs(processor: VPPProcessor, count: int = 2) -> Any:
    noise = torch.randint(0, 256, (count, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = [[Image.fromarray(image.numpy())] for image in noise]
    return processor(images=images, text=["USER: <image>\nthe cup ASSISTANT:"] * count, return_tensors="pt")


def test_the_towers_backbone_is_imagenets(pocket: tuple[Any, VPPProcessor]) -> None:
    shipped = load_backbone()
    mine = pocket[0].model.vision_tower.backbone.state_dict()

    assert len(mine) > 200
    assert all(torch.equal(value, shipped[name]) for name, value in mine.items())


def test_neither_backbone_nor_detector_learns(pocket: tuple[Any, VPPProcessor]) -> None:
    model = pocket[0]
    groups = parameter_groups(model, choose_parts())
    trained = {id(parameter) for group in groups for parameter in group["params"]}

    assert not trained & {id(parameter) for parameter in model.model.vision_tower.backbone.parameters()}
    assert not list(model.vpp.local_vpp.generator.parameters())


def test_saved_prompts_go_on_another_host(pocket: tuple[Any, VPPProcessor], tmp_path: Any) -> None:
    model = pocket[0]
    save_vpp(model, tmp_path)
    host, _ = build_pocket()
    attach_vpp(host, str(tmp_path))
    tensors = inputs(pocket[1])["vpp_pixel_values"]
    model.eval()

    with torch.no_grad():
        mine, theirs = model.vpp.local_vpp(tensors), host.vpp.local_vpp(tensors)  # type: ignore[attr-defined]

    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_a_querys_box_reaches_the_language_model_at_first_as_it_is() -> None:
    """Half of the projector is a linear map of the box's numbers: what two boxes' sum gives is the sum of both."""
    projector = nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 4))
    start_with_boxes(projector, slice(8, 20))
    code = torch.randn(2, 12)
    with torch.no_grad():
        projector[2].weight[:, 8:] = 0  # the other half is random
        none, *each, both = (
            projector(torch.cat([torch.zeros(8), numbers])) for numbers in (torch.zeros(12), *code, code.sum(0))
        )

    torch.testing.assert_close(both - none, sum(each) - 2 * none)
    assert (both - none).abs().max() > 0.01


def test_a_boxs_numbers_come_as_long_as_a_word(pocket: tuple[Any, VPPProcessor]) -> None:
    local = untrained_pocket()[0].vpp.local_vpp
    waves = torch.randn(64, 512, generator=torch.Generator().manual_seed(9)).sign() * 0.5**0.5
    hidden = local.projector[0].weight[:256, local.generator.box_code] @ waves.T
    length = (local.projector[2].weight[:, :256] @ torch.nn.functional.gelu(hidden)).norm(dim=0)

    assert 0.8 < length.mean() < 1.2


def test_the_seed_decides_and_changes_are_made() -> None:
    models = [untrained_pocket({"local_vpp": {"num_queries": 5}}, seed=seed)[0] for seed in (1, 1, 2)]
    states = [model.state_dict() for model in models]

    assert models[0].vpp.tokens_per_image == 5
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for name in ("model.language_model.embed_tokens.weight", "vpp.local_prompt.projector.0.weight"):
        assert not torch.equal(states[0][name], states[2][name])


def test_either_prompt_may_be_left_out() -> None:
    model, processor = untrained_pocket({"local_vpp": False})
    wrapped = VPPProcessor(processor, model)
    model.vpp.trained = True

    assert Grounder(model, wrapped, max_new_tokens=3)(Image.new("RGB", (90, 50)), "the cup").expression == "the cup"
    assert pocket_config().local_vpp is not None


def test_constants_stay_in_the_state_dict() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    before, pixels = module.state_dict(), torch.randn(1, 3, 2, 2)
    answer = module(pixels)

    make_constant(module)

    assert not list(module.parameters())
    assert module.state_dict().keys() == before.keys()
    assert torch.equal(module(pixels), answer)


def test_the_backbone_stays_frozen_when_it_is_loaded(tmp_path: Path) -> None:
    host, _ = untrained_pocket()
    backbone = host.model.vision_tower.backbone.state_dict()
    host.save_pretrained(tmp_path)
    register_pocket()

    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)

    assert all("backbone" not in name for name, _ in loaded.named_parameters())
    again = loaded.model.vision_tower.backbone.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in backbone.items())
