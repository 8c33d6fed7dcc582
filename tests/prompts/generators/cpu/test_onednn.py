import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpp_plugins.prompts.generators.cpu import Geometry, convolve, convolve_add, reordered

GEOMETRIES = [
    Geometry([1, 1], [1, 1], [1, 1], 1),
    Geometry([0, 2], [2, 1], [1, 1], 2),
    Geometry([2, 2], [1, 1], [2, 2], 1),
    Geometry([1, 1], [1, 1], [1, 1], 4),
]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float64: 1e-12}


@pytest.fixture(params=[True, False], ids=["oneDNN", "plain"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return bool(request.param)


def drawn(geometry: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    features = torch.randn(2, 8, 9, 11, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return features, torch.randn(12, 8 // geometry.groups, 3, 3, dtype=dtype), torch.randn(12, dtype=dtype)


def exactly(features: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry) -> Tensor:
    padding, stride, dilation, groups = geometry
    return F.conv2d(features.double(), weight.double(), bias.double(), stride, padding, dilation, groups)


def assert_near(found: Tensor, exact: Tensor) -> None:
    assert (found.double() - exact).abs().max() <= TOLERANCES[found.dtype] * exact.abs().max()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_they_are_the_convolution_and_what_follows(geometry: Geometry, dtype: torch.dtype, onednn: bool) -> None:
    features, weight, bias = drawn(geometry, dtype)
    exact = exactly(features, weight, bias, geometry)
    in_order = reordered(weight, geometry, list(features.shape))
    residual = torch.randn_like(exact).to(dtype).contiguous(memory_format=torch.channels_last)

    assert_near(convolve(features, in_order, bias, geometry), exact)
    assert_near(convolve(features, in_order, bias, geometry, relu=True), exact.relu())
    assert_near(convolve_add(features, in_order, bias, geometry, residual.clone()), (exact + residual.double()).relu())


def test_features_of_another_size_are_right_too() -> None:
    geometry = GEOMETRIES[0]
    features, weight, bias = drawn(geometry, torch.float32)

    in_order = reordered(weight, geometry, [1, 8, 40, 40])

    assert_near(convolve(features, in_order, bias, geometry), exactly(features, weight, bias, geometry))


def test_where_onednn_is_not_the_weight_stays() -> None:
    weight = torch.randn(12, 8, 3, 3, dtype=torch.float64)
    assert reordered(weight, GEOMETRIES[0], [1, 8, 9, 9]) is weight
