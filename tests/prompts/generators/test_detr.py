import copy
import pickle

import pytest
import torch
from torch import Tensor

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.attention import attend, attention_implementation
from vpp_plugins.prompts.generators import DETR, build_detr, detr_transformer
from vpp_plugins.prompts.generators.backbone import TimmBackbone

CHANNELS = 16


def tiny_detr(**options: object) -> DETR:
    backbone = TimmBackbone("resnet18", channels=(8, 8, 8, CHANNELS), layers=(1, 1, 1, 1))
    sizes = {"num_queries": 5, "width": 32, "heads": 4, "feedforward": 24, "encoder_layers": 2, "decoder_layers": 3}
    return DETR(backbone, backbone.channels, **{**sizes, **options})


@pytest.fixture
def detr() -> DETR:
    return tiny_detr().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 96)


def padded(features: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Features in the upper left corner of a larger map of noise, and where they are."""
    images, channels, rows, columns = features.shape
    canvas = torch.randn(images, channels, height, width)
    canvas[:, :, :rows, :columns] = features
    mask = torch.zeros(images, height, width, dtype=torch.bool)
    mask[:, :rows, :columns] = True
    return canvas, mask


def test_images_become_queries(detr: DETR, images: Tensor) -> None:
    queries = detr(images)

    assert queries.shape == (3, detr.num_queries, detr.width) == (3, 5, 32)
    assert not torch.allclose(queries[0], queries[1])
    assert not torch.allclose(queries[:, 0], queries[:, 1])


def test_a_batch_equals_its_images_one_by_one(detr: DETR, images: Tensor) -> None:
    mask = torch.ones(3, 64, 96, dtype=torch.bool)
    mask[1, 32:] = False

    one_by_one = torch.cat([detr(images[i : i + 1], mask[i : i + 1]) for i in range(3)])

    torch.testing.assert_close(detr(images, mask), one_by_one, rtol=1e-4, atol=1e-5)


def test_no_images_give_no_queries(detr: DETR) -> None:
    assert detr(torch.randn(0, 3, 64, 64)).shape == (0, 5, 32)


def test_the_two_halves_make_the_whole(detr: DETR, images: Tensor) -> None:
    features = detr.features(images)

    assert features.shape == (3, CHANNELS, 2, 3)
    assert torch.equal(detr.queries(features), detr(images))


def test_a_mask_that_hides_nothing_changes_nothing(detr: DETR, images: Tensor) -> None:
    mask = torch.ones(3, 64, 96, dtype=torch.bool)

    torch.testing.assert_close(detr(images, mask), detr(images))


def test_padding_takes_no_part(detr: DETR) -> None:
    features = torch.randn(2, CHANNELS, 3, 4)
    canvas, mask = padded(features, 5, 6)

    torch.testing.assert_close(detr.queries(canvas, mask), detr.queries(features), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(detr.queries(canvas), detr.queries(features), atol=1e-2)


RAGGED_MASKS = {
    "upper left": lambda mask: (mask[0, 3:].fill_(False), mask[1, :, 2:].fill_(False)),
    "in the middle": lambda mask: (mask[0, :1].fill_(False), mask[0, 3:].fill_(False), mask[2, :, :2].fill_(False)),
    "one image is all padding": lambda mask: (mask[1].fill_(False), mask[2, 1:].fill_(False)),
    "one token each": lambda mask: (mask.fill_(False), mask[:, 2, 3].fill_(True)),
    "no rectangle": lambda mask: mask[1, 1:3, 1:3].fill_(False),
    "nothing but padding": lambda mask: mask.fill_(False),
}


@pytest.mark.parametrize("kind", RAGGED_MASKS)
def test_packed_images_give_what_padded_and_masked_ones_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, and backward to every weight and to the features."""
    detr, mask = tiny_detr().double().eval(), torch.ones(3, 4, 5, dtype=torch.bool)
    RAGGED_MASKS[kind](mask)
    features = torch.randn(3, CHANNELS, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = [features, *(parameter for name, parameter in detr.named_parameters() if "backbone" not in name)]

    def results() -> list[Tensor]:
        queries = detr.queries(features, mask)
        uneven = torch.linspace(-1, 2, queries.numel()).view_as(queries)
        return [queries, *torch.autograd.grad((queries * uneven).sum(), weights)]

    packed = results()
    monkeypatch.setattr("vpp_plugins.prompts.generators.detr.ragged_pays", lambda tokens: False)
    for one, other in zip(packed, results(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert packed[0].std() > 0.1


def test_no_layer_computes_padding(detr: DETR) -> None:
    canvas, mask = padded(torch.randn(2, CHANNELS, 3, 4), 5, 6)
    mask[1, :, 2:] = False
    seen: list[int] = []
    for layer in detr.encoder:
        layer.linear1.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0].numel()))

    detr.queries(canvas, mask)

    assert seen == [3 * 4 + 3 * 2] * len(detr.encoder)


def test_packed_images_drop_out_in_training(detr: DETR) -> None:
    canvas, mask = padded(torch.randn(2, CHANNELS, 3, 4), 5, 6)
    assert not torch.equal(detr.train().queries(canvas, mask), detr.queries(canvas, mask))


def test_a_mask_of_pixels_serves_cached_features(detr: DETR) -> None:
    canvas, mask = padded(torch.randn(2, CHANNELS, 3, 4), 5, 6)
    of_pixels = mask.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)

    assert torch.equal(detr.queries(canvas, of_pixels), detr.queries(canvas, mask))


def test_a_image_that_is_all_padding_is_no_nan(detr: DETR, images: Tensor) -> None:
    mask = torch.ones(3, 64, 96, dtype=torch.bool)
    mask[1] = False
    images.requires_grad_()

    queries = detr(images, mask)
    queries.sum().backward()

    assert queries.isfinite().all()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert not images.grad[1].any()


def test_every_layers_queries_end_with_the_result(detr: DETR, images: Tensor) -> None:
    features = detr.features(images)

    layers = detr.queries(features, intermediate=True)

    assert layers.shape == (3, 3, 5, 32)
    assert torch.equal(layers[-1], detr.queries(features))
    assert not torch.allclose(layers[0], layers[1])
    # The norm's output at every layer: scaled by its weight, a query's mean is that of the bias, zero at the start.
    torch.testing.assert_close(layers.mean(-1), torch.zeros(3, 3, 5), rtol=0, atol=1e-6)


def test_every_parameter_gets_a_gradient(images: Tensor) -> None:
    """All but one, in the reference too: the first self-attention sees zeros, so its projections never matter."""
    detr = tiny_detr(dropout=0.0)
    for name, parameter in detr.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)

    detr(images).square().mul(torch.rand(32)).sum().backward()

    parameters = dict(detr.named_parameters())
    without = {name for name, weight in parameters.items() if weight.grad is None or weight.grad.abs().max() < 1e-7}
    assert without == {"decoder.0.self_attn.in_proj_weight"}


def test_every_attention_goes_through_attend(detr: DETR, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Tensor, **options: object) -> Tensor:
        calls.append([tensor.shape[2] for tensor in args])
        return attend(*args, **options)

    monkeypatch.setattr(detr_transformer, "attend", counted)
    detr(images)

    assert calls == [[6, 6, 6]] * 2 + [[5, 5, 5], [5, 6, 6]] * 3


def test_math_gives_the_same_queries(detr: DETR, images: Tensor) -> None:
    expected = detr(images)

    with attention_implementation("math"):
        torch.testing.assert_close(detr(images), expected, rtol=1e-4, atol=1e-5)


def test_low_precision_keeps_its_dtype(images: Tensor) -> None:
    assert tiny_detr().bfloat16()(images).dtype is torch.bfloat16


def test_it_copies_and_pickles(detr: DETR, images: Tensor) -> None:
    expected = detr(images)

    assert torch.equal(copy.deepcopy(detr)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(detr))(images), expected)


def test_the_builder_takes_any_timm_backbone() -> None:
    detr = build_detr(
        backbone="efficientnet_lite0",
        num_queries=7,
        width=16,
        heads=2,
        feedforward=8,
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.0,
    )

    assert detr(torch.randn(1, 3, 64, 64)).shape == (1, 7, 16)


def test_the_default_is_the_detector_of_vpp_llava() -> None:
    """The counts are those of its checkpoint: 705 tensors, of them 210,688 numbers in batch norms."""
    with torch.device("meta"):
        detr = build_detr()

    assert len(detr.state_dict()) == 705
    assert sum(parameter.numel() for parameter in detr.parameters()) == 60_308_416
    assert sum(buffer.numel() for buffer in detr.buffers()) == 210_688


def test_dilation_keeps_weights_and_refines_the_features(images: Tensor) -> None:
    """What makes a DC5 detector: the same tensors, and twice as many rows and columns."""
    sizes = {"backbone": "resnet10t", "width": 32, "heads": 4, "feedforward": 8, "encoder_layers": 1}
    plain, dilated = build_detr(**sizes).eval(), build_detr(**sizes, dilation=True).eval()
    dilated.load_state_dict(plain.state_dict())
    mask = torch.ones(3, 64, 96, dtype=torch.bool)
    mask[:, 32:] = False

    assert plain.features(images).shape[2:] == (2, 3)
    assert dilated.features(images).shape[2:] == (4, 6)
    assert dilated(images, mask).shape == plain(images, mask).shape
    assert not torch.allclose(dilated(images, mask), plain(images, mask))


def test_sides_that_are_no_multiples_of_32_are_refused(detr: DETR) -> None:
    with pytest.raises(VPPError, match=r"sides of DETR's images must be multiples of 32; got 64 x 100. Pad or resize"):
        detr(torch.randn(1, 3, 64, 100))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"width": 36, "heads": 8}, "multiple of heads and of 4; got width 36, heads 8"),
        ({"width": 30, "heads": 5}, "multiple of heads and of 4; got width 30, heads 5"),
        ({"decoder_layers": 0}, "needs at least one decoder layer to make queries; got 0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(VPPError, match=complaint):
        tiny_detr(**options)
