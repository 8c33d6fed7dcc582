"""The InternVL adapter: what it claims, and tiles with a thumbnail."""

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tests.adapters.test_axes_on_images import text
from tests.families import FAMILIES, attached_family
from tests.tiny import toy_config
from vpp_adapters.internvl import vpp_adapter
from vpp_plugins.attach.windows import to_windows
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize("name", list(FAMILIES))
def test_claims_its_host_only(name: str) -> None:
    assert (vpp_adapter(FAMILIES[name].model()) is not None) == (name == "internvl")


def test_claims_no_module_without_a_configuration() -> None:
    assert vpp_adapter(nn.Linear(2, 2)) is None


def test_describes_the_host() -> None:
    model = FAMILIES["internvl"].model()

    backbone = vpp_adapter(model)

    assert backbone.hidden_size == model.get_input_embeddings().weight.shape[1]
    assert [model.get_submodule(path) for path in backbone.vision_encoders] == [model.model.vision_tower]
    assert [model.get_submodule(path) for path in backbone.projectors] == [model.model.multi_modal_projector]
    assert (backbone.box_format, backbone.frame, backbone.tiled) == ("internvl", "image", True)
    assert (backbone.image_mean, backbone.image_std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert backbone.defaults.global_vpp.unit == "0-1000"


def test_tiles_show_their_part_and_the_thumbnail_shows_all(toy: None) -> None:
    _, processor = attached_family("internvl", toy_config(local_vpp=None))

    inputs = processor(images=Image.new("RGB", (200, 100)), text=text(processor), return_tensors="pt")

    expected = [(0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 1)]
    assert np.allclose(to_windows(inputs["vpp_tile_boxes"]), expected, atol=1e-4)
