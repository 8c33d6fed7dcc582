"""Every tensor of the 7B and 13B checkpoints has one place in the attached model, and whatever has none is named."""

import math
from pathlib import Path

import pytest

from tests.reference import published_settings, reference_keys
from vpp_adapters.vpp_llava.config import (
    Shape,
    check_parts,
    expected_shapes,
    host_config,
    is_computed,
    match,
    new_name,
    prompt_config,
)
from vpp_adapters.vpp_llava.reference import REFERENCE
from vpp_plugins import VPPError

SIZES = {"7b": (1396, 7_128_222_144), "13b": (1468, 13_417_208_256)}
"""Tensors and elements."""


@pytest.fixture(scope="module", params=SIZES)
def both(request: pytest.FixtureRequest) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of a published checkpoint, and those that the attached model expects, on meta tensors."""
    found = reference_keys(request.param)
    host = host_config(published_settings(request.param), found, Path())
    return found, expected_shapes(host, prompt_config(found))


@pytest.mark.parametrize("size", SIZES)
def test_the_recorded_list_is_whole(size: str) -> None:
    found = reference_keys(size)
    count, elements = SIZES[size]

    assert len(found) == count
    assert sum(math.prod(shape) for shape in found.values()) == elements


def test_keys_map_one_to_one(both: tuple[dict[str, Shape], dict[str, Shape]]) -> None:
    found, expected = both

    names = match(found, expected, "it")

    assert names.keys() == found.keys()
    assert sorted(names.values()) == sorted(expected)
    assert list(names) == list(found)
    assert all(expected[name] == found[key] for key, name in names.items())


@pytest.mark.parametrize("size", SIZES)
def test_both_sizes_have_the_references_prompts(size: str) -> None:
    assert prompt_config(reference_keys(size)) == REFERENCE


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.mm_projector.2.bias", "model.multi_modal_projector.linear_2.bias"),
        ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("model.visual_prompt", "vpp.global_prompt.prompt"),
        ("model.grd_projector.0.bias", "vpp.local_prompt.projector.0.bias"),
        (
            "model.detr_vision_tower.vision_tower.transformer.decoder.norm.weight",
            "vpp.local_prompt.generator.decoder_norm.weight",
        ),
        ("model.visual_visual_prompt", None),
        ("vision_tower.pre_layrnorm.bias", None),
    ],
)
def test_new_name(key: str, name: str | None) -> None:
    assert new_name(key) == name


def test_computed_tensors_are_left_out(both: tuple[dict[str, Shape], dict[str, Shape]]) -> None:
    found, expected = both
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": (64,),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": (1, 577),
        "model.detr_vision_tower.vision_tower.backbone.0.body.bn1.num_batches_tracked": (),
    }
    assert all(map(is_computed, old))

    assert match({**old, **found}, expected, "it") == match(found, expected, "it")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model.norm.weight": None}, r"1 missing: model.language_model.norm.weight\."),
        ({"model.stranger": (2,), "lm_tail": (1,)}, "2 not expected: lm_tail, model.stranger"),
        (
            {"model.visual_prompt": (3, 224, 224)},
            r"1 of another shape: vpp.global_prompt.prompt \(3, 224, 224\) instead of ",
        ),
        ({"model.detr_vision_tower.vision_tower.decoder.norm.bias": (256,)}, "1 not expected: model.detr_vision_tower"),
        (
            {"model.detr_vision_tower.vision_tower.input_projection.bias": (256,)},
            "1 doubled: .*input_proj.bias and .*input_projection.bias",
        ),
        (
            {f"model.layers.{n}.mlp.up_proj.weight": None for n in range(9)},
            "9 missing: .* and 6 more; |9 missing: .*6 more",
        ),
    ],
    ids=["missing", "unknown", "of another shape", "unknown to the detector", "doubled", "many"],
)
def test_each_misfit_is_named(
    change: dict[str, Shape | None], complaint: str, both: tuple[dict[str, Shape], dict[str, Shape]]
) -> None:
    found, expected = both
    changed = {key: shape for key, shape in {**found, **change}.items() if shape is not None}

    with pytest.raises(VPPError, match=f"it does not fit its config.json: .*{complaint}"):
        match(changed, expected, "it")


def test_a_plain_llava() -> None:
    prompts = ("model.visual_prompt", "model.grd_projector", "model.detr_vision_tower")
    plain = {key: shape for key, shape in reference_keys("7b").items() if not key.startswith(prompts)}

    check_parts(reference_keys("7b"), "it")
    with pytest.raises(VPPError, match=r"it holds no global prompt .*no projector .*no detector .*a LLaVA without VPP"):
        check_parts(plain, "it")
