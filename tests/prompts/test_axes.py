import subprocess
import sys
from hashlib import sha256
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch

from vpp_plugins.config import AxisStyle, AxisUnit
from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.axes import band_mask, draw_axes

STYLES, UNITS = get_args(AxisStyle), get_args(AxisUnit)
EDGE_STYLES = ("edge-0.1", "edge-0.05")
# Where the published checkpoint's axis image has its (bottom) ticks: int(33.6 * i); its ticks are 11 pixels long.
PUBLISHED_TICKS = [33, 67, 100, 134, 168, 201, 235, 268, 302]


def ink(size: int = 336, **options: object) -> np.ndarray:
    """True where something is drawn."""
    return np.asarray(draw_axes(size, **options).convert("L")) < 255  # type: ignore[arg-type]


def test_frame_and_ticks_stand_where_the_published_image_has_them() -> None:
    axes = ink()

    for edge in (axes[5], axes[-6], axes[:, 5], axes[:, -6]):
        assert np.flatnonzero(edge).tolist() == [0, *PUBLISHED_TICKS, 335]
    for edge in (axes[0], axes[-1], axes[:, 0], axes[:, -1]):
        assert edge.all()
    assert not axes[30:-30, 30:-30].any()


def test_a_label_is_the_same_on_all_edges_so_that_y_grows_downwards() -> None:
    """Told by how much ink each has: antialiasing spreads the same digits over slightly other pixels."""
    gray = 255.0 - np.asarray(draw_axes(336).convert("L"))
    band = slice(12, 29)

    top, bottom, left, right = (
        np.array([edge[band, at - 9 : at + 10].sum() for at in PUBLISHED_TICKS])
        for edge in (gray, gray[::-1], gray.T, gray.T[::-1])
    )

    for edge in (bottom, left, right):
        np.testing.assert_allclose(edge, top)
    assert np.abs(top - top[::-1]).max() > 0.1 * top.max()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("size", "border"), [(336, 30), (448, 30), (224, 30), (672, 60), (336, 12), (335, 29), (32, 4), (33, 3), (16, 1)]
)
def test_nothing_is_drawn_where_the_band_would_hide_it(
    style: AxisStyle, unit: AxisUnit, size: int, border: int
) -> None:
    """Labels were cut by the band in four of the styles: what lies outside P ⊙ M is never seen, and never trained."""
    band = band_mask(size, border, style).numpy() > 0

    drawn = ink(size, style=style, unit=unit, border=border)

    assert drawn[band].any()
    assert not drawn[~band].any()


@pytest.mark.parametrize("unit", UNITS)
def test_labels_of_neighbouring_ticks_do_not_touch(unit: AxisUnit) -> None:
    for style in EDGE_STYLES:
        drawn = ink(style=style, unit=unit)
        places = [int(336 * i / (20 if style == "edge-0.05" else 10)) for i in range(1, 20 if "5" in style else 10)]
        between = [(first + second) // 2 for first, second in pairwise(places)]
        assert not drawn[12:30, between].any()
        assert not drawn[-30:-12, between].any()


def test_every_style_and_unit_draws_another_image() -> None:
    images = {draw_axes(336, style=style, unit=unit).tobytes() for style in STYLES for unit in UNITS}

    assert len(images) == len(STYLES) * len(UNITS)


def test_0_05_has_a_tick_between_the_ticks_of_0_1() -> None:
    coarse, fine = (np.flatnonzero(ink(style=style)[5]) for style in EDGE_STYLES)

    assert len(fine) == 2 + 19
    assert set(coarse) <= set(fine)


def test_font_size_is_a_wish_that_the_band_limits() -> None:
    small, usual = ink(font_size=7), ink(font_size=10)

    assert small[12:30].sum() < usual[12:30].sum()
    assert np.array_equal(ink(font_size=300, border=16), ink(font_size=200, border=16))


def test_drawing_is_the_same_in_every_process() -> None:
    code = "from vpp_plugins.prompts.axes import draw_axes; from hashlib import sha256;"
    code += "print(sha256(draw_axes(336).tobytes()).hexdigest())"

    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert other == sha256(draw_axes(336).tobytes()).hexdigest()


def test_the_frame_of_the_reference_has_36720_pixels() -> None:
    """The count of VPP-LLaVA's visual_mask."""
    mask = band_mask(336, 30, "edge-0.1")

    assert mask.sum() == 36720
    assert torch.equal(mask, mask.flip(0))
    assert torch.equal(mask, mask.T)
    assert not mask[30:306, 30:306].any()


def test_the_cross_is_two_central_bars() -> None:
    mask = band_mask(336, 30, "cross")

    assert mask.sum() == 2 * 30 * 336 - 30 * 30
    assert mask[153:183].all()
    assert mask[:, 153:183].all()
    assert torch.equal(mask, mask.flip(0))


@pytest.mark.parametrize("border", [0, -1, 16, 30])
def test_a_band_that_leaves_nothing_inside_is_refused(border: int) -> None:
    with pytest.raises(VPPError, match=f"below half of size, but is {border} at a size of 32"):
        band_mask(32, border, "edge-0.1")
