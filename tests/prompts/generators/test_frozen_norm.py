import pytest
import timm
import torch
from torch import nn

from vpp_plugins.prompts.generators.frozen_norm import FrozenBatchNorm2d, freeze_batch_norms


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
