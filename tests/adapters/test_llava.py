"""The LLaVA adapter: what it claims, what it says of it, and the images' sides that it keeps."""

import pytest
import torch
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from tests.tiny import attached, inputs_for, tiny_llava, tiny_processor
from tests.tiny import image as noise
from vpp_adapters.llava import pad_to_square, vpp_adapter
from vpp_plugins import VPPProcessor, detach_vpp, vpp_disabled
from vpp_plugins.prompts.global_vpp import CLIP_MEAN, CLIP_STD


def test_claims_llava_only() -> None:
    assert vpp_adapter(nn.Linear(2, 2)) is None
    assert vpp_adapter(tiny_llava()).adapter == "llava"


def test_describes_the_host() -> None:
    model = tiny_llava()

    backbone = vpp_adapter(model)

    assert backbone.hidden_size == model.get_input_embeddings().weight.shape[1]
    assert [model.get_submodule(path) for path in backbone.vision_encoders] == [model.model.vision_tower]
    assert [model.get_submodule(path) for path in backbone.projectors] == [model.model.multi_modal_projector]
    assert (backbone.box_format, backbone.frame, backbone.tiled) == ("llava", "square", False)
    assert backbone.defaults.global_vpp.unit == "0-1"


@pytest.mark.parametrize(
    ("vision", "mean", "std"),
    [
        (CLIPVisionConfig, CLIP_MEAN, CLIP_STD),
        (SiglipVisionConfig, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
    ids=["clip", "siglip"],
)
def test_normalisation_is_that_of_the_vision_tower(
    vision: type, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
    }
    text = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaConfig(vision_config=vision(patch_size=8, **small), text_config=text, image_token_id=4)
    model = LlavaForConditionalGeneration(config)

    backbone = vpp_adapter(model)

    assert (backbone.image_mean, backbone.image_std) == (mean, std)


@pytest.mark.parametrize("kind", ["llava", "clip"])
@pytest.mark.parametrize("size", [(80, 20), (20, 80)], ids=["wide", "high"])
def test_images_are_padded_and_not_cropped(kind: str, size: tuple[int, int]) -> None:
    """Colour in the outermost pixels of the longer side must reach the vision encoder."""
    processor = tiny_processor()
    if kind == "clip":  # what published checkpoints name
        processor.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    image = noise(size=size)
    marked = image.copy()
    marked.paste((255, 0, 0), (0, 0, 4, 4))
    marked.paste((0, 255, 0), (size[0] - 4, size[1] - 4, *size))

    def pixels(each: object) -> torch.Tensor:
        return processor(images=each, text="<image>", return_tensors="pt")["pixel_values"][0]

    cropped = (pixels(image) - pixels(marked)).abs().amax(0)
    pad_to_square(processor)
    padded = (pixels(image) - pixels(marked)).abs().amax(0)

    assert not cropped.any()
    assert padded.any()
    assert pixels(image).shape == (3, 32, 32)


def test_settings_of_the_image_processor_are_kept() -> None:
    processor = tiny_processor()
    processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, image_mean=[0.1, 0.2, 0.3]
    )

    pad_to_square(processor)

    settings = processor.image_processor
    assert (settings.crop_size["height"], settings.size["shortest_edge"]) == (40, 40)
    assert list(settings.image_mean) == [0.1, 0.2, 0.3]
    assert settings.do_pad is True


def test_padding_is_announced_once(toy: None, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = attached()
    said = [record.getMessage() for record in caplog.records if record.name == "vpp_plugins"]

    VPPProcessor(processor.processor, model)  # pads already

    assert [sentence.startswith("LLaVA: this processor would crop") for sentence in said] == [True]
    assert [record.getMessage() for record in caplog.records if record.name == "vpp_plugins"] == said


def test_attach_generate_disable_detach(toy: None) -> None:
    model, processor = attached()
    inputs = inputs_for(processor, [2, 1])

    answer = model.generate(**inputs, max_new_tokens=3)
    with vpp_disabled(model):
        bare = model.generate(**inputs_for(processor, [2, 1]), max_new_tokens=3)

    assert answer.shape[1] == bare.shape[1] + 8
    assert type(detach_vpp(model)) is LlavaForConditionalGeneration
