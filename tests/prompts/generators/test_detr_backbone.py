import pytest
import timm
import torch
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.generators.backbone import FrozenBatchNorm2d, TimmBackbone, freeze_batch_norms


def shake_norms(module: nn.Module) -> None:
    """Give every batch norm numbers that a forgotten one of them would show."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "efficientnet_lite0"])
def test_a_frozen_backbone_computes_what_the_live_one_does_in_eval(name: str) -> None:
    backbone = timm.create_model(name, features_only=True, pretrained=False)
    shake_norms(backbone)
    image = torch.randn(2, 3, 64, 64)
    expected = [features.detach() for features in backbone.eval()(image)]

    freeze_batch_norms(backbone)

    # Frozen also means that train mode changes nothing.
    for features, expectation in zip(backbone.train()(image), expected, strict=True):
        torch.testing.assert_close(features, expectation, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_freezing_keeps_the_names_of_the_tensors(name: str) -> None:
    backbone = timm.create_model(name, features_only=True, pretrained=False)
    names = {key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")}

    freeze_batch_norms(backbone)

    assert set(backbone.state_dict()) == names


def test_a_frozen_norm_has_no_parameters_and_keeps_eps() -> None:
    parent = nn.Sequential(nn.BatchNorm2d(4, eps=0.5), nn.BatchNorm2d(4, affine=False))
    shake_norms(parent[:1])
    features = torch.randn(2, 4, 3, 5)
    expected = parent.eval()(features).detach()

    freeze_batch_norms(parent)

    torch.testing.assert_close(parent(features), expected)
    assert list(parent.parameters()) == []


def test_under_autocast_a_frozen_norm_stays_in_low_precision() -> None:
    features = torch.randn(1, 4, 3, 5, dtype=torch.bfloat16)

    assert FrozenBatchNorm2d(4)(features).dtype is torch.bfloat16


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("efficientnet_lite0", 320)])
def test_any_timm_backbone_gives_its_last_map(name: str, channels: int) -> None:
    backbone = TimmBackbone(name)

    assert backbone.channels == channels
    assert backbone(torch.randn(2, 3, 64, 96)).shape == (2, channels, 2, 3)


def test_a_backbone_with_channels_last_comes_out_with_channels_first() -> None:
    sizes = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", **sizes)

    assert backbone(torch.randn(1, 3, 64, 64)).shape == (1, 64, 2, 2) == (1, backbone.channels, 2, 2)


def test_the_stride_is_on_the_3x3_convolution() -> None:
    """The published weights were trained so: He et al. put it on the first 1x1, torchvision and DETR did not."""
    block = TimmBackbone("resnet26").body["layer2"][0]

    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def test_an_untrained_backbone_is_alive_and_calm() -> None:
    """timm starts residual branches at scale zero for the norms to learn; frozen there, their weights never moved."""
    backbone = TimmBackbone("resnet50", channels=(8, 8, 16, 16))

    features: Tensor = backbone(torch.randn(2, 3, 64, 64))
    features.square().mean().backward()

    assert 1e-3 < features.std() < 1e3
    assert all(weight.grad is not None and weight.grad.any() for weight in backbone.parameters())


def test_an_unknown_backbone_is_refused_with_a_suggestion() -> None:
    with pytest.raises(VPPError, match=r"no model 'resnet_101' to use as backbone. Did you mean 'resnet101"):
        TimmBackbone("resnet_101")
