"""Every call of a vision encoder gets the windows of its own inputs, also where generate repeats them."""

import pytest
import torch
from torch import nn

from vpp_plugins import VPPError
from vpp_plugins.attach.windows import EncoderWindows, windows_of_calls
from vpp_plugins.processor.tile_boxes import to_tile_boxes
from vpp_plugins.prompts.resample import Window

ENCODER = nn.Identity()


def windows(count: int) -> list[Window]:
    return [(0.0, 0.0, 1.0, (end + 1) / 8) for end in range(count)]


def repeated(given: list[Window], images: torch.Tensor, times: int) -> list[Window]:
    return list(EncoderWindows([given], [images]).next(ENCODER, times))


def test_each_encoder_goes_through_the_views_by_itself() -> None:
    """Some hosts encode the whole images first and then close-up tiles; generate may do so again."""
    whole, near = windows(1), windows(2)
    given, low, high = EncoderWindows([whole, near]), nn.Identity(), nn.Identity()

    assert [given.next(encoder, 1) for encoder in (low, low, high, low)] == [whole, near, whole, whole]


def test_windows_are_split_by_the_rows_of_the_image_arguments() -> None:
    boxes = to_tile_boxes(windows(3))

    assert windows_of_calls(boxes, [1, 2]) == [windows(3)[:1], windows(3)[1:]]
    assert windows_of_calls(boxes, [2, 2]) == [windows(3)]  # rows that are no inputs: all in one call
    assert windows_of_calls(boxes, [1]) == [windows(3)]


def test_tiles_are_repeated_with_their_row() -> None:
    """Two images of two and one tiles, padded to two, for three beams."""
    tiles = torch.ones(2, 2, 3, 4, 4)
    tiles[1, 1] = 0
    a, b, c = windows(3)

    assert repeated([a, b, c], tiles, 3) == [a, b, a, b, a, b, c, c, c]


def test_images_are_repeated_each_by_itself() -> None:
    a, b, c = windows(3)

    assert repeated([a, b, c], torch.ones(3, 3, 4, 4), 3) == [a, a, a, b, b, b, c, c, c]


def test_rows_of_patches_share_the_windows_evenly() -> None:
    assert repeated(windows(4), torch.ones(2, 2, 12), 2) == windows(4)[:2] * 2 + windows(4)[2:] * 2


def test_a_strip_of_all_images_is_no_row() -> None:
    assert repeated(windows(4), torch.ones(1, 3, 4, 16), 2) == windows(4)


def test_repeated_windows_that_cannot_be_told_apart() -> None:
    with pytest.raises(VPPError, match="5 tiles of 2 images cannot be told apart"):
        repeated(windows(5), torch.ones(2, 3, 4, 4), 2)
