"""A checkpoint's sizes come from its config.json and its tensors; what they do not say, or cannot be, is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference import FOLDER, published_settings, reference_keys
from vpp_adapters.vpp_llava.config import host_config, prompt_config
from vpp_adapters.vpp_llava.reference import is_reference, read_settings
from vpp_plugins import VPPError

DETR = "model.detr_vision_tower.vision_tower."


def test_sizes_of_7b() -> None:
    config = host_config(published_settings("7b"), reference_keys("7b"), Path())

    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.vocab_size) == (
        4096,
        32,
        32,
        32000,
    )
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
    assert (vision.image_size, vision.patch_size, vision.hidden_act, vision.intermediate_size) == (
        336,
        14,
        "quick_gelu",
        4096,
    )
    assert (config.vision_feature_layer, config.image_seq_length) == (-2, 576)
    assert config.to_dict()["vpp_llava"] is True


def test_rope_settings() -> None:
    scaled = {**published_settings("7b"), "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}

    config = host_config(scaled, reference_keys("7b"), Path())

    assert config.text_config.rope_parameters == {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}


@pytest.mark.parametrize("tower", ["openai/clip-vit-large-patch14-336", "/data/models/clip-vit-large-patch14-336"])
def test_openais_clip_needs_no_file(tower: str) -> None:
    config = host_config({**published_settings("7b"), "mm_vision_tower": tower}, reference_keys("7b"), Path())

    assert config.vision_config.num_attention_heads == 16


def test_a_vision_tower_with_its_own_settings(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text(
        json.dumps({"vision_config": {"num_attention_heads": 8, "hidden_act": "gelu", "hidden_size": 7}})
    )

    config = host_config({**published_settings("7b"), "mm_vision_tower": "./tower"}, reference_keys("7b"), tmp_path)

    vision = config.vision_config
    assert (vision.num_attention_heads, vision.hidden_act, vision.hidden_size) == (8, "gelu", 1024)


def test_an_unknown_vision_tower() -> None:
    with pytest.raises(VPPError, match="the vision tower 'some/vit', which is none of OpenAI's CLIPs: put its config"):
        host_config({**published_settings("7b"), "mm_vision_tower": "some/vit"}, reference_keys("7b"), Path())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear', but only 'mlp2x_gelu' can be converted"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True, but only False"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio='anyres', but only 'pad'"),
    ],
)
def test_settings_that_transformers_llava_does_not_have(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VPPError, match=sentence):
        host_config({**published_settings("7b"), **change}, reference_keys("7b"), Path())


def test_other_sizes_of_the_prompts() -> None:
    shapes = reference_keys("7b")
    shapes |= {"model.visual_prompt": (3, 224, 224), f"{DETR}query_embed.weight": (50, 256)}
    shapes = {
        key: shape
        for key, shape in shapes.items()
        if not any(f"layer3.{block}." in key for block in range(6, 23)) and "encoder.layers.5" not in key
    }

    config = prompt_config(shapes).to_dict()

    assert config["global_vpp"]["size"] == 224
    assert config["local_vpp"]["num_queries"] == 50
    options = config["local_vpp"]["generator_options"]
    assert (options["backbone"], options["encoder_layers"], options["decoder_layers"]) == ("resnet50", 5, 6)


def test_an_unknown_resnet() -> None:
    shapes = {**reference_keys("7b"), f"{DETR}backbone.0.body.layer1.3.conv1.weight": (64, 64, 1, 1)}

    with pytest.raises(
        VPPError, match=r"ResNet of stem 64 and stages \(4, 4, 23, 3\), but only resnet101 and resnet50"
    ):
        prompt_config(shapes)


@pytest.mark.parametrize("key", ["model.visual_prompt", f"{DETR}input_proj.weight"])
def test_a_tensor_that_tells_a_size_is_missing(key: str) -> None:
    shapes = {name: shape for name, shape in reference_keys("7b").items() if name != key}

    with pytest.raises(VPPError, match=f"holds no '{key}', which tells sizes of the model"):
        prompt_config(shapes)


def test_read_settings(tmp_path: Path) -> None:
    assert is_reference(read_settings(FOLDER / "checkpoint"))
    with pytest.raises(VPPError, match=r"no config.json in"):
        read_settings(tmp_path)
    for text, sentence in (("{", "is not valid JSON"), ("[1]", "must hold a JSON object, but holds a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(VPPError, match=sentence):
            read_settings(tmp_path)
    assert not is_reference({"architectures": ["LlavaForConditionalGeneration"]})
    assert not is_reference({})
