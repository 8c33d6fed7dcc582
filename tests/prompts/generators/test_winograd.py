import pytest
import torch
import torch.nn.functional as F

from vpp_plugins.prompts.generators import winograd


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (8, 13), (3, 20)])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_it_is_the_convolution(size: tuple[int, int], images: int, last: bool) -> None:
    features, weight, bias = draw(images, 6, *size), draw(5, 6, 3, 3), draw(5)
    expected = F.conv2d(features, weight, bias, padding=1)
    if last:
        features = features.contiguous(memory_format=torch.channels_last)

    convolved = winograd.convolve(features, winograd.transform_kernel(weight), bias)

    torch.testing.assert_close(convolved, expected, rtol=1e-12, atol=1e-12)


def test_float32_loses_two_digits_at_most() -> None:
    features, weight, bias = (
        draw(1, 256, 20, 20, dtype=torch.float32).relu(),
        draw(64, 256, 3, 3, dtype=torch.float32),
        draw(64, dtype=torch.float32),
    )
    exact = F.conv2d(features.double(), weight.double(), bias.double(), padding=1)

    convolved = winograd.convolve(features, winograd.transform_kernel(weight), bias)

    assert (convolved - exact).abs().max() < 2e-5 * exact.abs().max()


def test_pictures_in_a_batch_do_not_touch() -> None:
    features, kernel, bias = draw(2, 4, 6, 6), winograd.transform_kernel(draw(3, 4, 3, 3)), draw(3)

    both = winograd.convolve(features, kernel, bias)

    for index in range(2):
        torch.testing.assert_close(
            both[index : index + 1], winograd.convolve(features[index : index + 1], kernel, bias)
        )


def test_tiles_cover_the_picture() -> None:
    assert [winograd.tiles(*size) for size in [(1, 1), (4, 4), (5, 4), (20, 20)]] == [1, 1, 2, 25]
