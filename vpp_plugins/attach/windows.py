"""Which windows of the images each call of a vision encoder gets."""

import itertools
from collections import Counter
from collections.abc import Sequence

from jaxtyping import Real
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts import Window, outside_graphs

PER_SIDE = 1_000_000
"""Tile boxes count in millionths of the frame's side."""


class EncoderWindows:
    """The windows of a session's images, given to the encoders call by call.

    Most hosts encode their images in one call. Some have several image arguments, such as whole images and close-up
    tiles, and encode one after the other. Hosts whose forward encodes images do so for each beam and each returned
    sequence, whose rows generate repeats next to one another.
    """

    def __init__(self, windows: Sequence[Sequence[Window]], images: Sequence[Tensor] = ()) -> None:
        """`windows` are those of each call, `images` its image argument."""
        self.windows, self.images = windows, images
        self.calls: Counter[int] = Counter()
        """How often each encoder was called."""

    def next(self, encoder: nn.Module, repeats: int) -> Sequence[Window]:
        """Return the windows of an encoder's next call, in which generate repeats each row of the images.

        Raises VPPError where rows are repeated and it cannot be told which windows are whose.
        """
        index = 0
        if len(self.windows) > 1:
            index = self.calls[id(encoder)] % len(self.windows)
            self.calls[id(encoder)] += 1
        windows = self.windows[index]
        return windows if repeats == 1 else _repeat(windows, self.images[index], repeats)


@outside_graphs
def windows_of_calls(tile_boxes: Real[Tensor, "inputs 4"], rows: Sequence[int]) -> Sequence[Sequence[Window]]:
    """Split the windows where a host has several image arguments, each row of which is an input; `rows` counts them."""
    windows = to_windows(tile_boxes)
    if len(rows) < 2 or sum(rows) != len(windows):
        return [windows]
    rest = iter(windows)
    return [list(itertools.islice(rest, count)) for count in rows]


def to_windows(tile_boxes: Real[Tensor, "inputs 4"]) -> list[Window]:
    """Return `vpp_tile_boxes` as windows, in units of the frame; floats, as written by hand, are in these units."""
    per_side = 1 if tile_boxes.is_floating_point() else PER_SIDE
    return [tuple(place / per_side for place in box) for box in tile_boxes.tolist()]


def _repeat(windows: Sequence[Window], pixels: Tensor, times: int) -> Sequence[Window]:
    """Repeat the windows of each row of an image argument next to themselves, as generate repeats the row."""
    if pixels.ndim == 4 and len(pixels) == 1 < len(windows):  # a strip of all images, which MiniCPM-V encodes once
        return windows
    counts = _inputs_per_row(pixels) if len(pixels) > 1 else [len(windows)]
    each, rest = divmod(len(windows), len(pixels))
    if sum(counts) != len(windows) and not rest:  # rows that are no planes: Fuyu, Inkling
        counts = [each] * len(pixels)
    if sum(counts) != len(windows):
        raise VPPError(
            f"{len(windows)} tiles of {len(pixels)} images cannot be told apart where generate repeats the images "
            "for beams or several answers: call it with one image, or with num_beams=1 and num_return_sequences=1."
        )
    following = iter(windows)
    groups = [list(itertools.islice(following, count)) for count in counts]
    return [window for group in groups for _ in range(times) for window in group]


def _inputs_per_row(pixels: Tensor) -> list[int]:
    """Count the encoder's inputs in each row of an image argument; padding tiles, zero throughout, are none."""
    if pixels.ndim <= 4:
        return [1] * len(pixels)
    return [int(count) for count in pixels.flatten(-3).any(-1).flatten(1).sum(1)]
