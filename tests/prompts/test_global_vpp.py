from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpp_plugins.config import AxisStyle
from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.axes import draw_axes
from vpp_plugins.prompts.global_vpp import CLIP_MEAN, CLIP_STD, RGB, GlobalVPP
from vpp_plugins.prompts.resample import Window

STYLES = get_args(AxisStyle)
HALF: RGB = (0.5, 0.5, 0.5)


def toy(**options: object) -> GlobalVPP:
    """A prompt of 32 pixels with a band of 4, and noise in place of the drawing."""
    prompt = GlobalVPP(32, border=4, **options)  # type: ignore[arg-type]
    torch.nn.init.normal_(prompt.prompt)
    return prompt


def shown(pixels: Tensor, mean: RGB, std: RGB) -> Tensor:
    """Normalised pixels as colours from 0 to 1."""
    return pixels * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]


def test_the_prompt_starts_as_the_drawn_axes() -> None:
    prompt = GlobalVPP(64, border=6)

    image = shown(prompt.prompt, CLIP_MEAN, CLIP_STD).permute(1, 2, 0) * 255
    torch.testing.assert_close(image, torch.from_numpy(np.array(draw_axes(64, border=6))).float(), atol=1e-3, rtol=0)


def test_only_the_prompt_is_saved_and_learned() -> None:
    assert list(toy().state_dict()) == ["prompt"]
    assert [name for name, _ in toy().named_parameters()] == ["prompt"]


class TestKept:
    """x' = x - (1 - alpha) M (x - P): only the band changes."""

    @pytest.mark.parametrize("size", [32, 24, 61])
    def test_pixels_inside_the_band_are_bit_identical_and_the_band_changes(self, size: int) -> None:
        prompt, pixels = toy(), torch.randn(2, 3, size, size)

        blended = prompt(pixels)

        band = prompt.overlay().render((size, size))[3] > 0
        assert torch.equal(blended[..., ~band], pixels[..., ~band])
        assert (blended[..., band] != pixels[..., band]).float().mean() > 0.99

    def test_at_its_own_size_it_is_the_formula(self) -> None:
        prompt, pixels = toy(alpha=0.7), torch.randn(2, 3, 32, 32)

        expected = pixels - 0.3 * prompt.mask * (pixels - prompt.prompt)

        torch.testing.assert_close(prompt(pixels), expected)

    @pytest.mark.parametrize("size", [32, 24, 61])
    def test_the_prompts_gradient_is_exactly_zero_inside_and_reaches_all_of_the_band(self, size: int) -> None:
        prompt = toy()

        prompt(torch.randn(2, 3, size, size)).square().sum().backward()

        gradient = prompt.prompt.grad
        assert gradient is not None
        assert not gradient[:, prompt.mask == 0].any()
        assert (gradient[:, prompt.mask == 1] != 0).all()

    def test_alpha_1_changes_nothing_and_alpha_0_shows_the_prompt_alone(self) -> None:
        pixels = torch.randn(2, 3, 32, 32)
        opaque = toy(alpha=0.0)

        blended = opaque(pixels)

        assert torch.equal(toy(alpha=1.0)(pixels), pixels)
        band = opaque.mask == 1
        torch.testing.assert_close(blended[..., band], opaque.prompt[:, band].expand(2, -1, -1))
        assert torch.equal(blended[..., ~band], pixels[..., ~band])

    def test_a_rectangle_gets_its_axes_stretched_to_its_sides(self) -> None:
        prompt = toy()

        rendered = prompt.overlay().render((16, 64))

        assert (rendered[3, 3, 9:-9] == 0).all()
        assert (rendered[3, 0] > 0).all()
        assert (rendered[3, :, 4] > 0).all()


class TestScaled:
    """x' = alpha x + (1 - alpha) P M, as VPP-LLaVA's code has it."""

    @pytest.mark.parametrize("alpha", [0.95, 0.0, 1.0])
    def test_336_is_the_reference_s_formula(self, alpha: float) -> None:
        prompt = GlobalVPP(interior="scaled", resample="nearest", alpha=alpha)
        pixels = torch.randn(1, 3, 336, 336)

        expected = alpha * pixels + (1 - alpha) * (prompt.prompt * prompt.mask)

        torch.testing.assert_close(prompt(pixels), expected, atol=1e-6, rtol=1e-6)

    def test_640_takes_prompt_and_mask_apart_by_nearest_index(self) -> None:
        """VPP-LLaVA's detector image. Its recorded index map is floor(fp32(dst * fp32(336 / 640))), which at seven
        places is one less than dst * 336 // 640; its mask at 640 covers rows 0 to 57 and 583 to 639."""
        prompt = GlobalVPP(interior="scaled", resample="nearest")
        torch.nn.init.normal_(prompt.prompt)
        pixels = torch.randn(1, 3, 640, 640)
        places = np.arange(640)
        index = (places.astype(np.float32) * np.float32(336 / 640)).astype(int)
        assert places[index != places * 336 // 640].tolist() == [120, 200, 240, 360, 400, 440, 480]

        band = torch.ones(640, 640)
        band[58:583, 58:583] = 0
        laid = prompt.prompt[:, index][:, :, index] * band

        torch.testing.assert_close(prompt(pixels), 0.95 * pixels + 0.05 * laid, atol=1e-6, rtol=1e-6)

    def test_bilinear_differs_from_nearest_but_not_by_much(self) -> None:
        nearest, bilinear = GlobalVPP(interior="scaled", resample="nearest"), GlobalVPP(interior="scaled")
        pixels = torch.randn(1, 3, 640, 640)

        difference = (nearest(pixels) - bilinear(pixels)).abs()

        assert 0 < difference.mean() < 0.01

    def test_padding_is_not_scaled(self) -> None:
        """A letterboxed image in "scaled" style: alpha acts on the image only."""
        pixels = torch.randn(1, 3, 32, 64)

        blended = toy(interior="scaled", alpha=0.5)(pixels, [(-0.5, 0.0, 1.5, 1.0)])

        assert torch.equal(blended[..., :16], pixels[..., :16])
        assert torch.equal(blended[..., 48:], pixels[..., 48:])
        assert (blended[..., 16:48] != pixels[..., 16:48]).all()

    def test_nearest_refuses_tiles(self) -> None:
        with pytest.raises(VPPError, match="whole images only"):
            toy(resample="nearest")(torch.randn(1, 3, 32, 32), [(0.0, 0.0, 0.5, 0.5)])


@pytest.mark.parametrize("style", STYLES)
def test_each_style_blends_only_in_its_band(style: AxisStyle) -> None:
    prompt = toy(style=style)
    pixels = torch.zeros(1, 3, 32, 32)

    changed = (prompt(pixels) != 0).all(1)[0]

    assert torch.equal(changed, prompt.mask == 1)


def test_styles_and_units_differ() -> None:
    pixels = torch.zeros(1, 3, 336, 336)

    images = {
        GlobalVPP(style=style, unit=unit)(pixels).detach().numpy().tobytes()
        for style, unit in product(STYLES, ("0-1", "0-1000"))
    }

    assert len(images) == 8


class TestPadding:
    """The paper's external padding: the image shrinks, and opaque axes surround it."""

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (20, 90)])
    def test_the_whole_image_stands_shrunk_inside(self, height: int, width: int) -> None:
        prompt, pixels = toy(style="padding"), torch.randn(2, 3, height, width)
        top, left = round(height / 8), round(width / 8)

        blended = prompt(pixels)

        inner = (height - 2 * top, width - 2 * left)
        expected = F.interpolate(pixels, inner, mode="bilinear", antialias=True)
        torch.testing.assert_close(blended[..., top:-top, left:-left], expected)

    def test_the_axes_around_it_are_opaque_whatever_alpha_is(self) -> None:
        for alpha in (0.0, 0.95, 1.0):
            prompt = toy(style="padding", alpha=alpha)

            blended = prompt(torch.randn(1, 3, 32, 32))[0]

            band = prompt.mask == 1
            torch.testing.assert_close(blended[:, band], prompt.prompt[:, band])

    @pytest.mark.parametrize("resample", ["bilinear", "nearest"])
    def test_no_pixel_of_the_rim_stays_empty_at_other_sizes(self, resample: str) -> None:
        prompt = toy(style="padding", resample=resample)
        torch.nn.init.constant_(prompt.prompt, 7)
        for side in (24, 31, 45, 80):
            blended = prompt(torch.full((1, 3, side, side), 7.0))
            torch.testing.assert_close(blended, torch.full_like(blended, 7))

    def test_gradients_reach_image_and_band(self) -> None:
        prompt, pixels = toy(style="padding"), torch.randn(1, 3, 40, 40, requires_grad=True)

        prompt(pixels).square().sum().backward()

        assert pixels.grad is not None
        assert prompt.prompt.grad is not None
        assert (pixels.grad != 0).all()
        assert not prompt.prompt.grad[:, prompt.mask == 0].any()
        assert prompt.prompt.grad[:, prompt.mask == 1].any()

    def test_tiles_are_refused(self) -> None:
        with pytest.raises(VPPError, match="whole images only"):
            toy(style="padding")(torch.randn(1, 3, 32, 32), [(0.0, 0.0, 0.5, 1.0)])


class TestWindows:
    def test_tiles_of_an_image_carry_the_axes_of_the_whole_image(self) -> None:
        prompt, pixels = toy(), torch.randn(1, 3, 96, 64)
        windows: list[Window] = [
            (column / 2, row / 3, (column + 1) / 2, (row + 1) / 3) for row, column in product(range(3), range(2))
        ]
        tiles = pixels.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(6, 3, 32, 32)

        blended = prompt(tiles, windows)

        whole = prompt(pixels).unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(6, 3, 32, 32)
        torch.testing.assert_close(blended, whole, atol=1e-5, rtol=1e-5)

    def test_the_axes_of_a_letterboxed_image_lie_on_the_image_only(self) -> None:
        prompt, image = toy(), torch.randn(1, 3, 32, 32)
        boxed = F.pad(image, (0, 0, 16, 48))

        blended = prompt(boxed, [(0.0, -0.5, 1.0, 2.5)])

        torch.testing.assert_close(blended[:, :, 16:48], prompt(image), atol=1e-5, rtol=1e-5)
        assert torch.equal(blended[:, :, :16], boxed[:, :, :16])
        assert torch.equal(blended[:, :, 48:], boxed[:, :, 48:])

    def test_each_image_has_its_own_window(self) -> None:
        prompt, pixels = toy(), torch.randn(3, 3, 32, 32)
        windows: list[Window] = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 1.0)]

        together = prompt(pixels, windows)

        for index, window in enumerate(windows):
            torch.testing.assert_close(together[index], prompt(pixels[index : index + 1], [window])[0])

    @pytest.mark.parametrize("style", ["edge-0.1", "padding"])
    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_another_number_of_windows_than_images_is_refused(self, style: AxisStyle, count: int) -> None:
        """A single window was once spread over all images."""
        with pytest.raises(VPPError, match=f"{count} came for 2 images"):
            toy(style=style)(torch.randn(2, 3, 32, 32), [(0.0, 0.0, 1.0, 1.0)] * count)


class TestUnits:
    """P lives in the units of one normalisation, and can be had in those of another."""

    def test_overlay_for_the_same_units_is_the_overlay(self) -> None:
        prompt = toy()

        same = prompt.overlay_for(prompt.image_mean, prompt.image_std)

        torch.testing.assert_close(same.prompt, prompt.overlay().prompt)

    def test_blending_in_other_units_shows_the_same_colours(self) -> None:
        prompt, colours = toy(), torch.rand(1, 3, 32, 32)
        clip, half = ((colours - shown(torch.zeros(3, 1, 1), m, s)) / torch.tensor(s)[:, None, None] for m, s in UNITS)

        ours = shown(prompt(clip), CLIP_MEAN, CLIP_STD)
        theirs = shown(prompt.overlay_for(HALF, HALF).blend(half), HALF, HALF)

        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    def test_renormalise_keeps_the_image_that_the_prompt_shows(self) -> None:
        prompt = toy()
        before = shown(prompt.prompt.detach().clone(), prompt.image_mean, prompt.image_std)

        prompt.renormalise_(HALF, HALF)

        assert (prompt.image_mean, prompt.image_std) == (HALF, HALF)
        torch.testing.assert_close(shown(prompt.prompt, HALF, HALF), before)
        assert isinstance(prompt.prompt, torch.nn.Parameter)
        assert prompt.prompt.requires_grad


UNITS = ((CLIP_MEAN, CLIP_STD), (HALF, HALF))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("style", ["edge-0.1", "padding"])
@pytest.mark.parametrize("size", [32, 48])
def test_half_precision_pixels_come_back_in_their_precision(dtype: torch.dtype, style: AxisStyle, size: int) -> None:
    prompt, pixels = toy(style=style), torch.randn(1, 3, size, size)
    expected = prompt(pixels)

    for precise in (True, False):
        prompt = prompt if precise else prompt.to(dtype)
        blended = prompt(pixels.to(dtype))
        assert blended.dtype == dtype
        torch.testing.assert_close(blended.float(), expected, atol=0.03, rtol=0.03)


def test_the_overlay_outlives_the_parameter() -> None:
    """Hooks use the overlay after a wrapper (FSDP, offloading) may have taken the parameter's memory away."""
    prompt, pixels = toy(), torch.randn(1, 3, 32, 32)
    expected = prompt(pixels)
    overlay = prompt.overlay()

    prompt.prompt.data = torch.empty(0)

    assert torch.equal(overlay.blend(pixels), expected)


def test_a_band_as_wide_as_the_image_is_refused() -> None:
    """The default band of 30 pixels swallowed a 32-pixel prompt whole, without a word."""
    with pytest.raises(VPPError, match="below half of size"):
        GlobalVPP(32)
