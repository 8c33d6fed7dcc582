import pytest
import torch
import torch.nn.functional as F

from vpp_plugins.prompts.generators.cpu import tiles, transform_bias, transform_kernel, winograd_convolve


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


def convolve(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
    kernel = transform_kernel(weight, *features.shape[-2:], dtype=features.dtype)
    return winograd_convolve(features, kernel, transform_bias(bias), relu=relu)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (8, 13), (3, 20)])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_it_is_the_convolution(size: tuple[int, int], images: int, last: bool) -> None:
    features, weight, bias = draw(images, 6, *size), draw(5, 6, 3, 3), draw(5)
    expected = F.conv2d(features, weight, bias, padding=1)
    if last:
        features = features.contiguous(memory_format=torch.channels_last)

    torch.testing.assert_close(convolve(features, weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_the_relu_comes_after_the_bias() -> None:
    features, weight, bias = draw(1, 6, 8, 8), draw(5, 6, 3, 3), draw(5)
    expected = F.conv2d(features, weight, bias, padding=1).relu()

    torch.testing.assert_close(convolve(features, weight, bias, relu=True), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_how_much_it_loses_at_most(dtype: torch.dtype, tolerance: float) -> None:
    features, weight, bias = draw(1, 256, 20, 20).relu().to(dtype), draw(64, 256, 3, 3), draw(64).to(dtype)
    exact = F.conv2d(features.double(), weight, bias.double(), padding=1)

    convolved = convolve(features, weight, bias)

    assert convolved.dtype == dtype
    assert (convolved - exact).abs().max() < tolerance * exact.abs().max()


def test_images_in_a_batch_do_not_touch() -> None:
    features, weight, bias = draw(2, 4, 6, 6), draw(3, 4, 3, 3), draw(3)

    both = convolve(features, weight, bias)

    for index in range(2):
        torch.testing.assert_close(both[index : index + 1], convolve(features[index : index + 1], weight, bias))


def test_tiles_cover_the_image() -> None:
    assert [tiles(*size) for size in [(1, 1), (4, 4), (5, 4), (20, 20)]] == [1, 1, 2, 25]
