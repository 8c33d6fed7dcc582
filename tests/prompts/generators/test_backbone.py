import pytest
import torch
from torch import Tensor

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.generators.backbone import TimmBackbone


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
