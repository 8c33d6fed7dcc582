"""The Qwen-VL adapter: which generations it claims, and how they differ."""

import pytest
from torch import nn

from tests.families import FAMILIES
from vpp_adapters.qwen_vl import vpp_adapter
from vpp_plugins.boxes import codec
from vpp_plugins.plugins.layouts import Patches
from vpp_plugins.prompts.global_vpp import CLIP_MEAN, CLIP_STD

HALF = (0.5, 0.5, 0.5)
GENERATIONS = {
    "qwen2_vl": ("qwen2-vl", CLIP_MEAN, CLIP_STD, ("merger",)),
    "qwen2_5_vl": ("qwen2.5-vl", CLIP_MEAN, CLIP_STD, ("merger",)),
    "qwen3_vl": ("qwen3-vl", HALF, HALF, ("merger", "deepstack_merger_list")),
    "qwen3_vl_moe": ("qwen3-vl", HALF, HALF, ("merger", "deepstack_merger_list")),
    "qwen3_5": ("qwen3.5", HALF, HALF, ("merger",)),
    "qwen3_5_moe": ("qwen3.5", HALF, HALF, ("merger",)),
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_claims_its_hosts_only(name: str) -> None:
    assert (vpp_adapter(FAMILIES[name].model()) is not None) == (name in GENERATIONS)


def test_claims_no_module_without_a_configuration() -> None:
    assert vpp_adapter(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("name", list(GENERATIONS))
def test_describes_the_host(name: str) -> None:
    model = FAMILIES[name].model()
    box_format, mean, std, mergers = GENERATIONS[name]

    backbone = vpp_adapter(model)

    assert backbone.hidden_size == model.get_input_embeddings().weight.shape[1]
    assert [model.get_submodule(path) for path in backbone.vision_encoders] == [model.model.visual]
    assert [model.get_submodule(path) for path in backbone.projectors] == [
        model.model.visual.get_submodule(merger) for merger in mergers
    ]
    assert backbone.pixel_layout == Patches("grid_thw", merge=2, frames=2)
    assert (backbone.frame, backbone.tiled) == ("image", False)
    assert (backbone.image_mean, backbone.image_std) == (mean, std)
    assert (backbone.box_format, codec(backbone.box_format).family) == (box_format, box_format)
    assert backbone.defaults.global_vpp.unit == "0-1000"


def test_patches_follow_the_hosts_configuration() -> None:
    model = FAMILIES["qwen3_vl"].model()
    model.config.vision_config.spatial_merge_size = 4
    model.config.vision_config.temporal_patch_size = 1

    assert vpp_adapter(model).pixel_layout == Patches("grid_thw", merge=4, frames=1)
