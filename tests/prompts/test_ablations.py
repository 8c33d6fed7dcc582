"""The recipes of the paper's ablations: each one is valid, does something, and runs."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.prompts.generators.test_hf_detector import config_of
from tests.tiny import attached, image, inputs_for, tiny_llava
from vpp_plugins import VPPConfig
from vpp_plugins.plugins.registry import describe
from vpp_plugins.testing import TINY_DETR
from vpp_plugins.train.groups import choose_parts, parameter_groups

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "examples/recipes/ablations").glob("*.toml"))}
BASELINES = {"axes-edge-0.1", "vision-trained", "padding-seen"}
"""Recipes that say what is LLaVA's default anyway, so that a table of ablations has its middle row."""
PUBLISHED = {
    "microsoft/conditional-detr-resnet-50": "conditional_detr",
    "IDEA-Research/dab-detr-resnet-50": "dab-detr",
    "SenseTime/deformable-detr": "deformable_detr",
    "PekingU/rtdetr_r50vd": "rt_detr",
    "ustc-community/dfine-xlarge-coco": "d_fine",
}
"""The detectors that recipes fetch, and the tiny random ones that stand for them here."""

every_recipe = pytest.mark.parametrize("name", list(RECIPES))


def read(name: str) -> tuple[VPPConfig, dict[str, Any]]:
    """A recipe's prompts on top of LLaVA's defaults, and how it trains."""
    values = tomllib.loads(RECIPES[name].read_text())
    training = {key: values.pop(key) for key in ("learning_rates", "freeze") if key in values}
    return describe(tiny_llava()).defaults.changed(values), training


def in_little(config: VPPConfig) -> VPPConfig:
    """The same choice at toy size, without weights to fetch."""
    local = config.local_vpp
    if local is None:
        return config
    options = {**TINY_DETR, **local.generator_options}
    if local.generator == "hf_detector":
        assert local.weights == local.generator_options["config"]
        options = {"config": config_of(PUBLISHED[local.weights])}
    small = replace(local, num_queries=4, image_size=64, projector_size=16, generator_options=options, weights=None)
    return replace(config, local_vpp=small)


@every_recipe
def test_changes_what_it_is_about(name: str) -> None:
    config, training = read(name)
    defaults = describe(tiny_llava()).defaults

    changed = config != defaults or choose_parts(**named(training)) != choose_parts()

    assert changed is (name not in BASELINES)


@every_recipe
def test_trains_and_answers(name: str) -> None:
    config, training = read(name)
    model, processor = attached(config=in_little(config))
    groups = parameter_groups(model, choose_parts(**named(training)))
    inputs = inputs_for(processor, [1, 2])
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    torch.optim.SGD(groups).step()
    answer = model.eval().generate(**inputs, max_new_tokens=2)

    assert loss.isfinite()
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2
    moved = {n.split(".")[1] for n, p in model.named_parameters() if n in before and not torch.equal(before[n], p)}
    expected = {"global_prompt": config.global_vpp, "local_prompt": config.local_vpp}
    assert {part for part in expected if part in moved} == {part for part, prompt in expected.items() if prompt}


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (48, 48)], ids=["wide", "high", "square"])
def test_axes_on_the_image_leave_the_padding_alone(size: tuple[int, int]) -> None:
    """On the padded square the band covers the padding; on the image it frames the image."""
    reached = {}
    for name in ("axes-edge-0.1", "axes-on-the-picture"):
        config = in_little(read(name)[0])
        model, processor = attached(config=config)
        inputs = processor(images=image(0, size), text="USER: <image> where ASSISTANT:", return_tensors="pt")
        seen: list[torch.Tensor] = []
        model.model.vision_tower.embeddings.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(**inputs)
        changed = (seen[0] - inputs["pixel_values"]).abs().amax((0, 1)) > 1e-6
        reached[name] = (changed.any(1), changed.any(0))
    side, (width, height) = max(size), size
    rows, columns = (torch.arange(32) + 0.5) * side / 32, (torch.arange(32) + 0.5) * side / 32
    on_image = ((rows - side / 2).abs() < height / 2, (columns - side / 2).abs() < width / 2)

    assert all(axis.all() for axis in reached["axes-edge-0.1"])
    assert [axis.tolist() for axis in reached["axes-on-the-picture"]] == [axis.tolist() for axis in on_image]


@every_recipe
def test_is_a_comment_and_at_most_four_flat_keys(name: str) -> None:
    comment, *lines = RECIPES[name].read_text().splitlines()
    assert comment.startswith("# ")
    assert 1 <= len(lines) <= 4
    assert all(" = " in line and not line.startswith("[") for line in lines)


def test_the_page_lists_every_recipe() -> None:
    page = (ROOT / "docs/vpp-llava.md").read_text()
    assert [name for name in RECIPES if f"`{name}`" not in page] == []


def named(training: dict[str, Any]) -> dict[str, Any]:
    """A recipe's keys as arguments of choose_parts."""
    return {{"learning_rates": "preset"}.get(key, key): value for key, value in training.items()}
