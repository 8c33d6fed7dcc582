from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, DetrModel, ResNetConfig

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.generators import DETR, DetectionHeads, load_detr_weights
from vpp_plugins.prompts.generators.backbone import TimmBackbone
from vpp_plugins.prompts.generators.detr_weights import VPP_LLAVA_PREFIX

SIZES = {"num_queries": 5, "width": 32, "heads": 4, "feedforward": 24, "encoder_layers": 2, "decoder_layers": 2}


def tiny_detr() -> DETR:
    # "resnet26": bottleneck blocks, four stages; its first convolution has 64 channels whatever the others have.
    backbone = TimmBackbone("resnet26", fold=False, channels=(4, 4, 8, 8), layers=(1, 1, 2, 1))
    return DETR(backbone, backbone.channels, **SIZES).eval()


def shaken(module: nn.Module) -> nn.Module:
    """Every tensor away from its start, and large enough that one that is not loaded shows in the queries."""
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            nn.init.normal_(tensor, std=1.5 * tensor[0].numel() ** -0.5)
        elif name.endswith(("weight", "running_var")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        else:
            nn.init.normal_(tensor, std=0.2)
    return module.eval()


def detr_config(backbone: object) -> DetrConfig:
    return DetrConfig(
        backbone_config=backbone,
        num_queries=5,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    )


@pytest.fixture(scope="module")
def published() -> DetrForObjectDetection:
    """A DETR of transformers on transformers' own ResNet."""
    backbone = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 2, 1],
        layer_type="bottleneck",
        out_features=["stage4"],
    )
    torch.manual_seed(1)
    model: DetrForObjectDetection = shaken(DetrForObjectDetection(detr_config(backbone)))
    return model


def in_original_names(detr: DETR) -> dict[str, Tensor]:
    """The names of facebookresearch/detr, with the heads that its files also hold."""
    names = {
        "backbone.body.": "backbone.0.body.",
        "encoder.": "transformer.encoder.layers.",
        "decoder.": "transformer.decoder.layers.",
        "decoder_norm.": "transformer.decoder.norm.",
    }
    state = {}
    for name, tensor in detr.state_dict().items():
        ours = next((start for start in names if name.startswith(start)), "")
        state[names.get(ours, "") + name.removeprefix(ours)] = tensor
    return {**state, **DetectionHeads(32, num_classes=3).state_dict()}


def assert_equal(detr: DETR, other: DETR) -> None:
    expected = other.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in detr.state_dict().items())


@pytest.mark.parametrize("masked", [False, True])
def test_queries_equal_those_of_transformers(published: DetrForObjectDetection, masked: bool) -> None:
    detr = tiny_detr()
    load_detr_weights(detr, published.state_dict())
    torch.manual_seed(2)  # a rare image's rounding is three times as large
    images, mask = torch.randn(2, 3, 96, 128), torch.ones(2, 96, 128, dtype=torch.bool)
    if masked:
        mask[0, 64:] = False
        mask[1, :, 90:] = False

    with torch.no_grad():
        queries = detr(images, mask if masked else None)
        expected = published.model(images, pixel_mask=mask.long()).last_hidden_state

    assert (queries - expected).abs().max() < 1e-5 * expected.abs().max()
    # Queries and images differ, so the comparison means something.
    assert expected.std(dim=1).mean() > 5e-3
    assert (expected[0] - expected[1]).std() > 5e-3


def test_transformers_on_a_timm_backbone_as_in_memory_and_as_saved(tmp_path: Path) -> None:
    """In memory transformers 5 has new names; what it saves has those of version 4, as the published files do."""
    backbone = {"model_type": "timm_backbone", "backbone": "resnet18", "features_only": True, "out_indices": [4]}
    model = shaken(DetrModel(detr_config(backbone)))
    model.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 64, 64)
    expected = model(image).last_hidden_state

    for source in (model.state_dict(), tmp_path, tmp_path / "model.safetensors"):
        detr = DETR(TimmBackbone("resnet18"), 512, **SIZES).eval()
        load_detr_weights(detr, source)
        assert (detr(image) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_original_file_loads(tmp_path: Path) -> None:
    trained, detr = shaken(tiny_detr()), tiny_detr()
    torch.save({"model": in_original_names(trained)}, tmp_path / "detr.pth")

    load_detr_weights(detr, tmp_path / "detr.pth")

    assert_equal(detr, trained)


def test_the_names_here_are_those_of_the_original() -> None:
    """Some of each kind, as recorded from VPP-LLaVA's classes: the round trip above could be wrong twice."""
    names = in_original_names(tiny_detr()).keys()

    assert names >= {
        "transformer.encoder.layers.0.self_attn.in_proj_weight",
        "transformer.encoder.layers.1.linear1.bias",
        "transformer.decoder.layers.0.multihead_attn.out_proj.bias",
        "transformer.decoder.layers.1.norm3.weight",
        "transformer.decoder.norm.weight",
        "input_proj.weight",
        "query_embed.weight",
        "backbone.0.body.bn1.running_mean",
        "backbone.0.body.layer3.1.conv3.weight",
        "backbone.0.body.layer1.0.downsample.1.running_var",
        "class_embed.weight",
        "bbox_embed.layers.2.bias",
    }


def test_vpp_llavas_whole_checkpoint_loads(tmp_path: Path) -> None:
    trained, detr = shaken(tiny_detr()), tiny_detr()
    of_detr = {VPP_LLAVA_PREFIX + name: tensor for name, tensor in in_original_names(trained).items()}
    save_file({**of_detr, "model.layers.0.mlp.up_proj.weight": torch.ones(2)}, tmp_path / "model.safetensors")

    load_detr_weights(detr, tmp_path)

    assert_equal(detr, trained)


def test_our_own_state_loads_and_may_count_batches() -> None:
    trained, detr = shaken(tiny_detr()), tiny_detr()

    load_detr_weights(detr, {**trained.state_dict(), "backbone.body.bn1.num_batches_tracked": torch.tensor(3)})

    assert_equal(detr, trained)


def test_the_dtype_of_the_detr_stays() -> None:
    trained, detr = shaken(tiny_detr()), tiny_detr().bfloat16()

    load_detr_weights(detr, trained.state_dict())

    assert_equal(detr, trained.bfloat16())


def test_a_detr_built_without_memory_takes_the_weights_as_its_own() -> None:
    trained = shaken(tiny_detr())
    with torch.device("meta"):
        detr = tiny_detr()

    load_detr_weights(detr, trained.double().state_dict())

    assert_equal(detr, trained.float())
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in detr.parameters())


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: without(state, "model.query_position_embeddings.weight"), "missing: query_embed.weight. Build"),
        (
            lambda state: without(state, "model.encoder.layers.1.self_attn.k_proj.bias"),
            r"missing: encoder.1.self_attn.in_proj_bias; 2 not expected: encoder.1.self_attn.q_proj.bias",
        ),
        (lambda state: {**state, "model.mask_head.weight": torch.ones(1)}, "1 not expected: mask_head.weight. Build"),
        (
            lambda state: {**state, "model.query_position_embeddings.weight": torch.ones(6, 32)},
            r"of another shape: query_embed.weight \(6, 32\) instead of \(5, 32\)",
        ),
        (
            lambda state: {**state, "model.input_projection.bias": torch.full((32,), torch.nan)},
            "NaN or infinite: input_proj.bias",
        ),
        (
            lambda state: {**state, "query_embed.weight": torch.ones(5, 32)},
            "hold 'query_embed.weight' twice, as 'model.query_position_embeddings.weight' and as 'query_embed.weight'",
        ),
        (lambda state: {"lm_head.weight": torch.ones(1)}, "no DETR weights in a known layout.* names: lm_head.weight"),
        (lambda state: {}, "Its names: none"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    published: DetrForObjectDetection, change: object, complaint: str
) -> None:
    detr, untouched = tiny_detr(), tiny_detr()
    untouched.load_state_dict(detr.state_dict())

    with pytest.raises(VPPError, match=complaint):
        load_detr_weights(detr, change(dict(published.state_dict())))

    assert_equal(detr, untouched)


def test_another_backbone_is_refused(published: DetrForObjectDetection) -> None:
    backbone = timm.create_model("resnet18", features_only=True, out_indices=(-1,), channels=(16, 16, 32, 32))

    with pytest.raises(VPPError, match="Build the DETR with the sizes and the backbone of the weights"):
        load_detr_weights(DETR(backbone, 32, **SIZES), published.state_dict())
