"""The generic adapter: what it finds out by itself, what it takes from its table, and what it refuses."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn
from transformers import (
    AutoImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaModel,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

from tests.families import tokenizer
from tests.tiny import TOY_LOCAL, tiny_llava, toy_config
from tests.tiny import image as noise
from tests.zoo.hosts import PLACEHOLDER, inputs_of, tiny_host
from vpp_adapters.generic.adapter import vpp_adapter
from vpp_adapters.generic.table import ENCODERS, LAYOUTS, NO_GLOBAL, REFUSED, WHOLE, loose_patches, single_patches
from vpp_adapters.generic.video_llava import padding
from vpp_plugins import GlobalVPP, GlobalVPPConfig, LocalVPPConfig, VPPConfig, VPPError, attach_vpp
from vpp_plugins.attach.windows import to_windows
from vpp_plugins.boxes import codec
from vpp_plugins.plugins.layouts import Padded, PaddedPatches, Patches, planes
from vpp_plugins.plugins.registry import describe
from vpp_plugins.processor.tile_boxes import tile_boxes
from vpp_plugins.testing import check_adapter

pytestmark = pytest.mark.usefixtures("toy")


def stranger(kind: str = "stranger", **names: str) -> Any:
    """A host whose model type nobody knows: a LLaVA, with some of its modules renamed."""
    model: Any = tiny_llava()
    model.config.__class__ = type("StrangerConfig", (LlavaConfig,), {"model_type": kind})
    model.__class__ = type("StrangerForConditionalGeneration", (LlavaForConditionalGeneration,), {})
    for old, new in names.items():
        model.model.add_module(new, model.model._modules.pop(old))
    return model


@pytest.mark.parametrize(
    ("model_type", "encoders", "layout", "tiled"),
    [
        ("paligemma", ("model.vision_tower",), planes, True),
        ("glm4v", ("model.visual",), Patches("grid_thw", 2, frames=2), False),
        ("ernie4_5_vl_moe", ("model.vision_tower",), Patches("grid_thw", 2), False),
        ("mistral3", ("model.vision_tower",), Padded("image_sizes"), False),
        ("gemma4", ("model.vision_tower",), PaddedPatches("pixel_position_ids"), False),
        ("deepseek_vl_hybrid", ("model.vision_model", "model.high_res_vision_model"), planes, True),
        ("chameleon", (), planes, False),
        # their processors pad images to whole patches, or cut them if so set
        ("kimi_k25", ("model.vision_tower",), Patches("grid_thw"), True),
        ("idefics2", ("model.vision_model",), Padded("pixel_attention_mask"), True),
    ],
)
def test_it_finds_the_vision_encoder_and_its_layout(
    model_type: str, encoders: tuple[str, ...], layout: Any, tiled: bool
) -> None:
    model = tiny_host(model_type)

    claim = describe(model)

    assert (claim.adapter, claim.fallback) == ("generic", True)
    assert (claim.vision_encoders, claim.pixel_layout, claim.tiled) == (encoders, layout, tiled)
    assert claim.hidden_size == model.config.get_text_config().hidden_size


@pytest.mark.parametrize(
    ("model_type", "box_format", "unit"),
    [
        ("paligemma", "paligemma", "0-1000"),
        ("qwen2_5_omni_thinker", "qwen2.5-vl", "0-1000"),
        ("aria", "qwen3-vl", "0-1000"),
    ],
)
def test_boxes_are_the_familys_own_or_qwen3s(model_type: str, box_format: str, unit: str) -> None:
    claim = describe(tiny_host(model_type))

    assert claim.box_format == box_format
    assert claim.frame == "image"
    assert claim.defaults.global_vpp is not None
    assert claim.defaults.global_vpp.unit == unit
    assert codec(claim.box_format).frame == "image"


@pytest.mark.parametrize("model_type", ["vipllava", "video_llava"])
def test_hosts_that_learned_boxes_from_llavas_data_measure_them_on_the_padded_square(model_type: str) -> None:
    claim = describe(tiny_host(model_type))

    assert (claim.box_format, claim.frame, claim.tiled) == ("llava", "square", True)
    assert claim.defaults.global_vpp == GlobalVPPConfig(unit="0-1")
    assert claim.defaults.local_vpp == LocalVPPConfig(mask_padding=False)


def video_llava_processor() -> Any:
    images = VideoLlavaImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    words = tokenizer({"<image>": "image_token", "<video>": "video_token"})
    return VideoLlavaProcessor(images, VideoLlavaVideoProcessor(), words, patch_size=8)


@pytest.mark.parametrize("size_hw", [(40, 100), (90, 30), (32, 32)], ids=["wide", "high", "square"])
def test_their_images_are_padded_and_not_cropped(size_hw: tuple[int, int]) -> None:
    processor, claim = video_llava_processor(), describe(tiny_host("video_llava"))
    claim.prepare_processor(processor)

    windows = to_windows(tile_boxes(processor, [size_hw], claim))

    assert np.allclose(windows, [(0, 0, 1, 1)], atol=0.02)


def test_padding_survives_pickling_and_goes_on_after_saving(tmp_path: Path) -> None:
    processor, claim = video_llava_processor(), describe(tiny_host("video_llava"))
    claim.prepare_processor(processor)
    image = [noise(size=(40, 24))]
    expected = processor.image_processor(image)["pixel_values_images"]

    pickled = pickle.loads(pickle.dumps(processor.image_processor))
    processor.image_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)

    assert np.array_equal(pickled(image)["pixel_values_images"], expected)
    assert type(loaded) is VideoLlavaImageProcessor
    assert not np.array_equal(loaded(image)["pixel_values_images"], expected)
    assert np.array_equal(padding(loaded)(image)["pixel_values_images"], expected)


@pytest.mark.parametrize(
    ("model_type", "projectors"),
    [
        ("aria", ("model.multi_modal_projector",)),
        ("instructblip", ("language_projection", "qformer")),
        ("glm4v", ("model.visual.merger",)),
        ("t5gemma2", ("model.encoder.multi_modal_projector",)),
    ],
)
def test_projectors_are_found_beside_and_within_the_encoder(model_type: str, projectors: tuple[str, ...]) -> None:
    assert describe(tiny_host(model_type)).projectors == projectors


def test_a_named_adapter_goes_first() -> None:
    model = tiny_llava()

    assert vpp_adapter(model) is not None
    assert describe(model).adapter == "llava"


def test_an_unknown_architecture_is_described_by_introspection() -> None:
    claim = vpp_adapter(stranger())

    assert claim is not None
    assert claim.vision_encoders == ("model.vision_tower",)
    assert claim.projectors == ("model.multi_modal_projector",)
    assert (claim.pixel_layout, claim.tiled, claim.image_arguments) == (planes, True, ("pixel_values",))
    assert claim.hidden_size == 24


def test_a_host_without_a_vision_encoder_gets_the_local_prompt_alone() -> None:
    model = stranger(vision_tower="eyes")

    attach_vpp(model, VPPConfig(global_vpp=None, local_vpp=TOY_LOCAL), adapter="generic")

    assert model.vpp.global_vpp is None
    claim = vpp_adapter(stranger(vision_tower="eyes"))
    assert claim is not None
    assert claim.defaults.global_vpp is None


def test_the_global_prompt_on_a_host_without_a_vision_encoder_is_an_error() -> None:
    with pytest.raises(VPPError, match=r"cannot act on 'generic' hosts: attach with VPPConfig\(global_vpp=None\)"):
        attach_vpp(stranger(vision_tower="eyes"), toy_config(), adapter="generic")


def test_a_model_of_text_alone_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))

    with pytest.raises(VPPError, match="cannot be attached to LlamaForCausalLM: it takes no images; load the model's"):
        attach_vpp(model)


def test_a_model_without_a_language_head_is_refused() -> None:
    with pytest.raises(VPPError, match="cannot be attached to LlavaModel: it has no language head"):
        describe(LlavaModel(tiny_llava().config))


def test_a_vision_encoder_alone_is_refused() -> None:
    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(VPPError, match="cannot be attached to CLIPVisionModel: it has no language head"):
        describe(CLIPVisionModel(config))


@pytest.mark.parametrize("model_type", ["pi0", "pix2struct", "udop"])
def test_hosts_that_cannot_take_vpp_are_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(VPPError, match=f"VPP cannot be attached to .*: {REFUSED[model_type]}"):
        attach_vpp(tiny_host(model_type))


def test_what_is_not_transformers_is_left_to_others() -> None:
    assert vpp_adapter(nn.Linear(1, 1)) is None


def test_the_tables_do_not_contradict_one_another() -> None:
    assert not REFUSED.keys() & (LAYOUTS.keys() | ENCODERS.keys() | NO_GLOBAL.keys())
    assert not NO_GLOBAL.keys() & LAYOUTS.keys()
    assert LAYOUTS.keys() >= WHOLE


@pytest.mark.parametrize("model_type", ["kimi_k25", "git", "gemma4_unified"])
def test_one_host_of_each_kind_keeps_every_promise(model_type: str) -> None:
    """Features merged in, prepended, and placed by position; the other architectures are in tests/zoo, marked slow."""
    model = tiny_host(model_type)

    report = check_adapter(model, inputs=inputs_of(model_type, model), token_id=PLACEHOLDER)

    assert report.adapter == "generic"
    assert "forward" in report.held


def test_single_patches_are_images_of_their_own() -> None:
    overlay = GlobalVPP(16, border=2).overlay()
    images = torch.randn(6, 3, 8, 8)
    windows = [(index / 6, 0.0, (index + 1) / 6, 1.0) for index in range(6)]
    rows = rearrange(images, "(b n) c y x -> b n (y x c)", b=2)

    laid = single_patches(rows, overlay, windows, {})

    expected = overlay.blend(images, windows)
    assert torch.equal(rearrange(laid, "b n (y x c) -> (b n) c y x", y=8, x=8), expected)


def test_loose_patches_are_a_image_in_reading_order_with_and_without_the_axis_in_front() -> None:
    overlay = GlobalVPP(16, border=2).overlay()
    image = torch.randn(1, 3, 8, 12)
    patches = rearrange(image, "1 c (h y) (w x) -> (h w) c y x", y=4, x=4)
    call = {"grid_thw": torch.tensor([[1, 2, 3]])}

    laid = loose_patches(patches, overlay, None, call)

    expected = rearrange(overlay.blend(image), "1 c (h y) (w x) -> (h w) c y x", y=4, x=4)
    assert torch.equal(laid, expected)
    assert torch.equal(loose_patches(patches[None], overlay, None, call), expected[None])
