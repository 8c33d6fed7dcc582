"""transformers' detectors as generators: tiny random ones, built, loaded, masked, and put on a host."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.tiny import TOY_GLOBAL, attached, inputs_for
from vpp_plugins import LocalVPPConfig, VPPConfig, VPPError
from vpp_plugins.prompts.generators import HFDetector, build_hf_detector, load_hf_weights, load_weights

QUERIES = 5
SMALL = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8}
RESNET = {**SMALL, "model_type": "resnet", "layer_type": "bottleneck"}
LAYERS = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
OLDER = {**LAYERS, "d_model": 16, "backbone_config": {**RESNET, "out_features": ["stage4"]}}
LATER = {
    **LAYERS,
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 8, 8],
    "decoder_in_channels": [16, 16, 16],
    "feat_strides": [8, 16, 32],
    "decoder_n_points": 2,
    "backbone_config": {
        **SMALL,
        "model_type": "rt_detr_resnet",
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
}
HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    **dict.fromkeys(["hidden_sizes", "stage_in_channels", "stage_mid_channels", "stage_out_channels"], [8] * 4),
    **dict.fromkeys(["stage_num_blocks", "stage_numb_of_layers", "depths"], [1] * 4),
    "embedding_size": 8,
    "out_features": ["stage2", "stage3", "stage4"],
}
DEFORMABLE = {
    **OLDER,
    "d_model": 32,
    "num_feature_levels": 3,
    "backbone_config": {**RESNET, "out_features": ["stage2", "stage3", "stage4"]},
}
DETECTORS: dict[str, dict[str, Any]] = {
    "detr": OLDER,
    "conditional_detr": OLDER,
    "dab-detr": {**{name: value for name, value in OLDER.items() if name != "d_model"}, "hidden_size": 16},
    "deformable_detr": DEFORMABLE,
    "rt_detr": LATER,
    "rt_detr_v2": LATER,
    "d_fine": {**LATER, "decoder_n_points": [2, 2, 2], "backbone_config": HGNET},
}
IGNORE_MASKS = {"rt_detr", "rt_detr_v2", "d_fine"}

every_detector = pytest.mark.parametrize("kind", list(DETECTORS))


def config_of(kind: str) -> dict[str, Any]:
    return {"model_type": kind, **DETECTORS[kind]}


def tiny(kind: str) -> HFDetector:
    return build_hf_detector(num_queries=QUERIES, config=config_of(kind)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96)


@every_detector
def test_images_become_queries(kind: str, images: Tensor) -> None:
    detector = tiny(kind)

    queries = detector(images)

    assert queries.shape == (2, QUERIES, detector.width)
    assert queries.isfinite().all()
    assert not torch.allclose(queries[0], queries[1])
    torch.testing.assert_close(detector(images[1:]), queries[1:], rtol=1e-4, atol=1e-5)


@every_detector
def test_the_mask_hides_padding_where_the_detector_heeds_it(kind: str, images: Tensor) -> None:
    detector = tiny(kind)
    mask = torch.ones(2, 64, 96, dtype=torch.bool)
    mask[0, 32:] = False

    changed = ~torch.isclose(detector(images, mask), detector(images), atol=1e-5).all(-1).all(-1)

    assert changed.tolist() == [kind not in IGNORE_MASKS, False]


@every_detector
def test_every_parameter_gets_a_gradient(kind: str, images: Tensor) -> None:
    """Also those that only choose queries: data-parallel training would wait for them for ever."""
    detector = tiny(kind).train()
    detector.requires_grad_(True)

    detector(images).square().sum().backward()

    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


@every_detector
def test_training_does_not_mix_images(kind: str, images: Tensor) -> None:
    """Batch norms are frozen: without dropout, training gives what evaluation gives, and statistics stay."""
    values = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    detector = build_hf_detector(num_queries=QUERIES, config={**config_of(kind), **values})
    before = {name: buffer.clone() for name, buffer in detector.named_buffers()}

    torch.testing.assert_close(detector.train()(images), detector.eval()(images), rtol=1e-4, atol=1e-5)

    assert all(torch.equal(before[name], buffer) for name, buffer in detector.named_buffers())


@every_detector
def test_published_weights_are_loaded_without_their_heads(kind: str, tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(1)
    settings = CONFIG_MAPPING[kind](**DETECTORS[kind], num_queries=QUERIES)
    published = AutoModelForObjectDetection.from_config(settings).eval()
    for parameter in published.parameters():  # some heads start at zero, and refine no box then
        nn.init.normal_(parameter, std=0.2)
    published.save_pretrained(tmp_path)
    detector = tiny(kind)

    load_weights(detector, tmp_path)

    torch.testing.assert_close(detector(images), published.model(images).last_hidden_state)


@pytest.mark.parametrize("kind", ["conditional_detr", "rt_detr"])
def test_the_configuration_may_be_a_folder(kind: str, tmp_path: Path, images: Tensor) -> None:
    CONFIG_MAPPING[kind](**DETECTORS[kind]).save_pretrained(tmp_path)
    detector = build_hf_detector(num_queries=3, config=str(tmp_path)).eval()
    assert detector(images).shape == (2, 3, 16)


def test_it_pickles(images: Tensor) -> None:
    detector = tiny("conditional_detr")
    assert torch.equal(pickle.loads(pickle.dumps(detector))(images), detector(images))


def test_two_stages_make_queries_by_their_heads(images: Tensor) -> None:
    both = {"model_type": "deformable_detr", **DEFORMABLE, "two_stage": True, "with_box_refine": True}
    detector = build_hf_detector(num_queries=3, config=both).eval()
    assert detector(images).shape == (2, 3, 32)


@pytest.mark.parametrize("kind", ["conditional_detr", "rt_detr"])
def test_on_a_host(kind: str) -> None:
    local = LocalVPPConfig(
        num_queries=QUERIES,
        generator="hf_detector",
        generator_options={"config": config_of(kind)},
        image_size=64,
        projector_size=16,
    )
    model, processor = attached(config=VPPConfig(global_vpp=TOY_GLOBAL, local_vpp=local))
    inputs = inputs_for(processor, [1, 2])

    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    answer = model.generate(**inputs, max_new_tokens=2)

    assert answer.shape == (2, inputs["input_ids"].shape[1] + 2)
    assert all(parameter.grad is not None for parameter in model.vpp.parameters() if parameter.requires_grad)


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "complaint"),
        [
            ({"d_model": 16}, "has no model_type"),
            ({"model_type": "conditional_dter"}, r"knows no model_type 'conditional_dter'\. Did you mean 'conditional"),
            ({"model_type": "yolos"}, "'yolos' has no num_queries"),
            ({"model_type": "maskformer"}, "cannot build 'maskformer' as a detector|has no num_queries"),
            ("/no/such/folder", "'/no/such/folder' is no folder"),
            (
                {
                    "model_type": "grounding-dino",
                    **LAYERS,
                    "d_model": 32,
                    "text_config": {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 8,
                                    "num_attention_heads": 2, "intermediate_size": 8},
                    "backbone_config": {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4,
                                        "out_features": ["stage2", "stage3", "stage4"]},
                },
                "'grounding-dino' needs a text",
            ),
        ],
        ids=["no type", "unknown", "no queries", "no detector", "no folder", "text"],
    )  # fmt: skip
    def test_what_is_no_such_detector(self, config: Any, complaint: str) -> None:
        with pytest.raises(VPPError, match=complaint):
            build_hf_detector(num_queries=QUERIES, config=config)

    def test_weights_of_another_detector(self, tmp_path: Path) -> None:
        other = CONFIG_MAPPING["detr"](**OLDER, num_queries=QUERIES)
        AutoModelForObjectDetection.from_config(other).save_pretrained(tmp_path)
        detector = tiny("dab-detr")
        before = {name: value.clone() for name, value in detector.state_dict().items()}

        with pytest.raises(VPPError, match=r"Nothing was loaded|could not be loaded"):
            load_hf_weights(detector, tmp_path)

        assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())

    def test_weights_with_another_number_of_queries(self, tmp_path: Path) -> None:
        other = CONFIG_MAPPING["detr"](**OLDER, num_queries=9)
        AutoModelForObjectDetection.from_config(other).save_pretrained(tmp_path)
        with pytest.raises(VPPError, match="could not be loaded into this detector"):
            load_hf_weights(tiny("detr"), tmp_path)

    def test_weights_for_a_plugins_generator(self) -> None:
        with pytest.raises(VPPError, match="Linear is a plugin's"):
            load_weights(torch.nn.Linear(2, 2), "folder")

    def test_options_that_do_not_fit(self) -> None:
        from vpp_plugins.plugins.registry import build_generator

        with pytest.raises(VPPError, match="do not fit the generator 'hf_detector'"):
            build_generator("hf_detector", 3, {"configuration": "x"})


def test_nothing_is_fetched_for_a_configuration_that_names_pretrained_parts() -> None:
    """Published configurations ask for a pretrained backbone, which is overwritten by the weights anyway."""
    backbone = {"model_type": "timm_backbone", "backbone": "resnet10t", "use_pretrained_backbone": True,
                "out_indices": [4]}  # fmt: skip
    detector = build_hf_detector(
        num_queries=QUERIES, config={**config_of("conditional_detr"), "backbone_config": backbone}
    )
    assert detector.model.config.backbone_config.use_pretrained_backbone is False
