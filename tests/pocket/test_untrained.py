"""The pocket model before training: random but for its backbone, which tower and detector compute once between them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vpp_plugins import Grounder, VPPProcessor, save_vpp
from vpp_plugins.attach.attach import attach_vpp
from vpp_plugins.pocket import build_pocket, pocket_config, untrained_pocket
from vpp_plugins.pocket.untrained import SIZE
from vpp_plugins.pocket.vision import make_constant, register_pocket
from vpp_plugins.pocket.weights import load_backbone
from vpp_plugins.train.groups import choose_parts, parameter_groups


@pytest.fixture(scope="module")
def pocket() -> tuple[Any, VPPProcessor]:
    model, processor = untrained_pocket()
    wrapped = VPPProcessor(processor, model)
    model.vpp.trained = True
    return model, wrapped


@pytest.fixture
def calls(pocket: tuple[Any, VPPProcessor], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images that the tower's backbone was given, one by one."""
    tower, seen = pocket[0].model.vision_tower, []
    own = tower.backbone.forward
    monkeypatch.setattr(tower.backbone, "forward", lambda pixels: (seen.append(pixels), own(pixels))[1])
    return seen


def inputs(processor: VPPProcessor, count: int = 2) -> Any:
    noise = torch.randint(0, 256, (count, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = [[Image.fromarray(image.numpy())] for image in noise]
    return processor(images=images, text=["USER: <image>\nthe cup ASSISTANT:"] * count, return_tensors="pt")


def test_the_backbone_is_imagenets_in_both_places(pocket: tuple[Any, VPPProcessor]) -> None:
    model, shipped = pocket[0], load_backbone()
    body = model.vpp.local_vpp.generator.backbone.body.state_dict()

    assert all(
        torch.equal(value, shipped[name]) for name, value in model.model.vision_tower.backbone.state_dict().items()
    )
    assert all(torch.equal(value, shipped[name]) for name, value in body.items())
    assert len(body) > 200


def test_the_backbone_learns_nowhere(pocket: tuple[Any, VPPProcessor]) -> None:
    model = pocket[0]
    groups = parameter_groups(model, choose_parts())
    trained = {id(parameter) for group in groups for parameter in group["params"]}

    assert not trained & {id(parameter) for parameter in model.model.vision_tower.backbone.parameters()}
    assert not list(model.vpp.local_vpp.generator.backbone.parameters())


def test_state_dicts_are_those_of_a_detector_by_itself(pocket: tuple[Any, VPPProcessor], tmp_path: Any) -> None:
    model = pocket[0]
    save_vpp(model, tmp_path)
    host, _ = build_pocket()
    attach_vpp(host, str(tmp_path))
    tensors = inputs(pocket[1])["vpp_pixel_values"]
    model.eval()

    with torch.no_grad():
        mine, theirs = model.vpp.local_vpp(tensors), host.vpp.local_vpp(tensors)  # type: ignore[attr-defined]

    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_in_training_tower_and_detector_compute_the_maps_once(
    pocket: tuple[Any, VPPProcessor], calls: list[Tensor]
) -> None:
    model, processor = pocket
    model.vpp.global_prompt.requires_grad_(False)
    batch = inputs(processor)
    model.train()
    once = model(**batch).logits
    assert len(calls) == len(batch["pixel_values"])

    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, once, atol=1e-4, rtol=1e-4)
    assert len(calls) == 3 * len(batch["pixel_values"])


def test_other_images_get_their_own_maps(pocket: tuple[Any, VPPProcessor]) -> None:
    tower = pocket[0].model.vision_tower.train()
    first, second = torch.randn(2, 1, 3, 64, 64)
    kept = [tower.maps(pixels) for pixels in (first, second, second, second)]

    assert not torch.equal(kept[0][1], kept[1][1])
    assert kept[1][1] is kept[2][1]
    assert kept[3][1] is not kept[2][1]  # taken over once, then forgotten


def test_with_gradients_to_the_pixels_nothing_is_kept(pocket: tuple[Any, VPPProcessor]) -> None:
    tower = pocket[0].model.vision_tower.train()
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)

    assert tower.maps(pixels)[1] is not tower.maps(pixels)[1]


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
