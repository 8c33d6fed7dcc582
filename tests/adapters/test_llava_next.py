"""The LLaVA-NeXT adapter: what it claims, and images with and without tiles."""

import pytest
import torch
import transformers
from torch import nn

from tests.families import FAMILIES, attached_family, encoder_pixels, family_inputs
from tests.tiny import toy_config
from vpp_adapters.llava_next import OneVisionViews, vpp_adapter
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.windows import to_windows
from vpp_plugins.plugins.layouts import planes
from vpp_plugins.prompts.global_vpp import CLIP_MEAN

HOSTS = ["llava_next", "llava_onevision"]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_claims_its_hosts_only(name: str) -> None:
    assert (vpp_adapter(FAMILIES[name].model()) is not None) == (name in HOSTS)


def test_claims_no_module_without_a_configuration() -> None:
    assert vpp_adapter(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("name", HOSTS)
def test_describes_the_host(name: str) -> None:
    model = FAMILIES[name].model()

    backbone = vpp_adapter(model)

    assert backbone.hidden_size == model.get_input_embeddings().weight.shape[1]
    assert [model.get_submodule(path) for path in backbone.vision_encoders] == [model.get_encoder("image")]
    assert [model.get_submodule(path) for path in backbone.projectors] == [model.model.multi_modal_projector]
    assert (backbone.box_format, backbone.frame, backbone.tiled) == ("llava-next", "square", True)
    assert backbone.defaults.global_vpp.unit == "0-1"
    assert backbone.image_mean == (CLIP_MEAN if name == "llava_next" else (0.5, 0.5, 0.5))


def test_claims_the_video_model_for_its_images() -> None:
    image = FAMILIES["llava_next"].model().config
    config = transformers.LlavaNextVideoConfig(
        vision_config=image.vision_config,
        text_config=image.text_config,
        image_grid_pinpoints=image.image_grid_pinpoints,
        image_token_index=12,
        video_token_index=13,
    )

    assert vpp_adapter(transformers.LlavaNextVideoForConditionalGeneration(config)).pixel_layout is planes


def test_images_of_one_text_are_their_whole_views(toy: None) -> None:
    """LLaVA-OneVision cuts an image into tiles only where it has its text to itself."""
    model, processor = attached_family("llava_onevision", toy_config(local_vpp=None))
    inputs = family_inputs(processor, [2, 1])

    laid = encoder_pixels(model, inputs)

    boxes, sizes = inputs["vpp_tile_boxes"], inputs["image_sizes"].tolist()
    views = OneVisionViews.of(model.config)
    assert isinstance(host_state(model).backbone.pixel_layout, OneVisionViews)
    assert len(boxes) == 3 * 3
    assert len(laid) == 1 + 1 + 3
    axes, pixels = model.vpp.global_vpp.overlay(), inputs["pixel_values"].flatten(0, 1)
    shown = [0, 3, 6, 7, 8]
    windows = to_windows(boxes)
    assert len(sizes) == 3
    call = {"image_sizes": inputs["image_sizes"], "batch_num_images": torch.tensor([2, 1])}
    expected = axes.blend(pixels[shown], [windows[index] for index in shown])
    assert torch.equal(laid, expected)
    assert torch.equal(views(pixels[shown], axes, windows, call), expected)
    assert not torch.equal(laid, pixels[shown])
