import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpp_plugins.prompts.resample import WHOLE, Window, outside_graphs, resample, resample_each


def antialiased(square: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(square[None], size_hw, mode="bilinear", antialias=True, align_corners=False)[0]


@pytest.mark.parametrize("side", [1, 7, 32, 33])
@pytest.mark.parametrize("size_hw", [(1, 1), (5, 64), (32, 32), (33, 32), (17, 50), (100, 101)])
def test_the_whole_square_equals_torchs_antialiased_interpolation(side: int, size_hw: tuple[int, int]) -> None:
    square = torch.randn(3, side, side)

    torch.testing.assert_close(resample(square, size_hw), antialiased(square, size_hw), rtol=1e-5, atol=1e-5)


def test_at_the_squares_own_size_it_comes_back_untouched() -> None:
    square = torch.randn(2, 16, 16)

    assert torch.equal(resample(square, (16, 16)), square)


@pytest.mark.parametrize(("rows", "columns", "tile"), [(2, 2, 24), (1, 3, 16), (3, 2, 4)])
def test_tiles_put_together_equal_the_whole_rendered_large(rows: int, columns: int, tile: int) -> None:
    square = torch.randn(3, 32, 32)
    tiles = torch.empty(3, rows * tile, columns * tile)
    for row, column in product(range(rows), range(columns)):
        window: Window = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        place = (slice(None), slice(row * tile, (row + 1) * tile), slice(column * tile, (column + 1) * tile))
        tiles[place] = resample(square, (tile, tile), window)

    torch.testing.assert_close(tiles, resample(square, (rows * tile, columns * tile)), rtol=1e-4, atol=1e-5)


def test_a_window_beyond_the_square_is_zero_there_and_the_whole_square_inside() -> None:
    """A letterboxed image: 100 pixels of image with 25 of padding on the left and 35 on the right."""
    square = torch.randn(3, 32, 32) + 5

    shown = resample(square, (100, 160), (-0.25, 0, 1.35, 1))

    torch.testing.assert_close(shown[:, :, 25:125], resample(square, (100, 100)), rtol=1e-4, atol=1e-4)
    assert not shown[:, :, :25].any()
    assert not shown[:, :, 125:].any()


@pytest.mark.parametrize("window", [WHOLE, (0.1, 0.2, 0.7, 0.3), (-0.5, 0, 1.5, 1), (2.0, 0, 3, 1)])
def test_a_constant_square_stays_constant_inside(window: Window) -> None:
    shown = resample(torch.full((1, 20, 20), 3.0), (30, 30), window)

    inside = shown != 0
    torch.testing.assert_close(shown[inside], torch.full_like(shown[inside], 3))
    assert inside.any() == (window[0] < 1)


def test_gradients_are_those_of_a_linear_map() -> None:
    square = torch.randn(1, 6, 6, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda s: resample(s, (4, 9), (-0.2, 0.1, 0.8, 1.3)), (square,))


def test_the_dtype_stays() -> None:
    square = torch.randn(1, 16, 16)

    shown = resample(square.bfloat16(), (8, 8))

    assert shown.dtype == torch.bfloat16
    torch.testing.assert_close(shown.float(), resample(square, (8, 8)), atol=0.03, rtol=0.03)


def test_training_after_inference_mode_works() -> None:
    """The weights were cached as tensors: made under inference mode, they could not be used for a backward pass."""
    square = torch.randn(1, 19, 19, requires_grad=True)
    with torch.inference_mode():
        resample(square, (11, 23))

    resample(square, (11, 23)).sum().backward()

    assert square.grad is not None


def test_a_first_call_on_another_default_device_leaves_nothing_behind() -> None:
    with torch.device("meta"):
        assert resample(torch.randn(1, 18, 18), (11, 21)).device.type == "meta"

    assert resample(torch.randn(1, 18, 18), (11, 21)).device.type == "cpu"


def test_compiling_neither_warns_nor_changes_the_result() -> None:
    """torch.compile warned of a cached function. In a process of its own: the signature checks do not compile."""
    code = """
import torch
from vpp_plugins.prompts.resample import resample

square, window = torch.randn(3, 16, 16), (0.0, 0.0, 0.5, 1.0)
compiled = torch.compile(resample, backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(square, (24, 20), window), resample(square, (24, 20), window))
"""
    finished = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)

    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("size_hw", [(24, 24), (10, 50), (33, 32)])
def test_many_windows_at_once_equal_each_by_itself(size_hw: tuple[int, int]) -> None:
    square = torch.randn(3, 32, 32)
    windows = [WHOLE, (-0.31, 0.0, 1.27, 1.0), (0.25, 0.1, 0.5, 0.7), (2.0, 2.0, 3.0, 3.0)]

    found = resample_each(square, size_hw, torch.tensor(windows))

    expected = torch.stack([resample(square, size_hw, window) for window in windows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@outside_graphs
def largest(tensor: Tensor, *, at_least: int = 0) -> int:
    """Return the largest number."""
    return max(at_least, *tensor.tolist())


def test_it_is_the_function() -> None:
    assert largest(torch.tensor([3, 5])) == 5
    assert largest(torch.tensor([3, 5]), at_least=9) == 9
    assert (largest.__name__, largest.__doc__) == ("largest", "Return the largest number.")


def test_numbers_stay_right_between_graphs() -> None:
    compiled = torch.compile(lambda tensor: (tensor + 1) * largest(tensor * 2), backend="eager")
    for numbers in ([1, 2], [3, 4]):
        tensor = torch.tensor(numbers)
        assert torch.equal(compiled(tensor), (tensor + 1) * 2 * numbers[1])


def test_no_public_name_imports_the_compiler() -> None:
    script = (
        "import sys, vpp_plugins; [getattr(vpp_plugins, name) for name in vpp_plugins.__all__]; "
        "assert 'torch' in sys.modules; sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
