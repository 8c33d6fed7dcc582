"""Layouts of colour planes: what they touch, and what they leave."""

import pickle

import pytest
import torch
from torch import Tensor

from vpp_plugins import VPPError
from vpp_plugins.plugins.layouts import Padded, blocks, planes, tiles
from vpp_plugins.prompts.global_vpp import GlobalVPP, Overlay

PARTS = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
"""Two tiles of an image and its thumbnail."""


def axes(**changes: object) -> Overlay:
    return GlobalVPP(32, border=4).overlay()._replace(**changes)


class TestPlanes:
    def test_any_axes_before_the_planes(self) -> None:
        pixels = torch.randn(2, 3, 3, 24, 16)

        found = planes(pixels, axes(), PARTS * 2, {})

        assert torch.equal(found.flatten(0, 1), axes().blend(pixels.flatten(0, 1), PARTS * 2))

    def test_one_window_for_each_input(self) -> None:
        with pytest.raises(VPPError, match="3 came for 2 images"):
            planes(torch.randn(2, 3, 24, 16), axes(), PARTS, {})


class TestTiles:
    def test_padding_tiles_stay_zero_and_have_no_window(self) -> None:
        """Idefics and Mllama tell padding from images by its zeros."""
        pixels = torch.randn(2, 3, 3, 24, 16)
        pixels[1, 1:] = 0
        windows = [*PARTS, PARTS[2]]

        found = tiles(pixels, axes(), windows, {})

        assert not found[1, 1:].any()
        assert torch.equal(found[0], axes().blend(pixels[0], PARTS))
        assert torch.equal(found[1, :1], axes().blend(pixels[1, :1]))

    def test_gradients_reach_the_prompt_past_padding(self) -> None:
        module = GlobalVPP(32, border=4)
        pixels = torch.randn(1, 2, 3, 24, 16)
        pixels[0, 1] = 0

        tiles(pixels, module.overlay(), None, {}).sum().backward()

        assert module.prompt.grad is not None
        assert module.prompt.grad.any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_nothing_but_padding(self, dtype: torch.dtype) -> None:
        pixels = torch.zeros(1, 2, 3, 24, 16, dtype=dtype)

        assert torch.equal(tiles(pixels, axes(), None, {}), pixels)


class TestBlocks:
    def test_are_planes_with_colours_last_and_repeated_frames(self) -> None:
        images = torch.randn(3, 3, 8, 8)
        pixels = images.permute(0, 2, 3, 1)[:, None].expand(3, 2, 8, 8, 3)

        found = blocks(pixels, axes(), PARTS, {})

        expected = axes().blend(images, PARTS).permute(0, 2, 3, 1)
        assert torch.equal(found, expected[:, None].expand(3, 2, 8, 8, 3))


class TestPadded:
    @pytest.fixture
    def pixels(self) -> Tensor:
        pixels = torch.randn(2, 3, 24, 32)
        pixels[1, :, 16:] = pixels[1, :, :, 20:] = 0
        return pixels

    def expected(self, pixels: Tensor, overlay: Overlay) -> Tensor:
        expected = pixels.clone()
        expected[:1] = overlay.blend(pixels[:1])
        expected[1:, :, :16, :20] = overlay.blend(pixels[1:, :, :16, :20])
        return expected

    @pytest.mark.parametrize("sizes", [torch.tensor([[24, 32], [16, 20]]), [(24, 32), (16, 20)]])
    def test_sizes(self, pixels: Tensor, sizes: object) -> None:
        found = Padded("image_sizes")(pixels, axes(), None, {"image_sizes": sizes})

        assert torch.equal(found, self.expected(pixels, axes()))

    def test_mask_with_a_row_for_a_image_that_the_encoder_does_not_get(self, pixels: Tensor) -> None:
        mask = torch.zeros(2, 2, 24, 32, dtype=torch.bool)
        mask[0, 0], mask[1, 0, :16, :20] = True, True

        found = Padded("mask")(pixels, axes(), None, {"mask": mask})

        assert torch.equal(found, self.expected(pixels, axes()))

    def test_scaling_the_interior_leaves_the_padding(self, pixels: Tensor) -> None:
        found = Padded()(pixels + 1, axes(interior="scaled"), None, {"image_sizes": [(24, 32), (16, 20)]})

        assert torch.equal(found[1, :, 16:], torch.ones(3, 8, 32))

    def test_windows_are_of_the_content(self, pixels: Tensor) -> None:
        found = Padded()(pixels, axes(), PARTS[:2], {"image_sizes": [(24, 32), (16, 20)]})

        assert torch.equal(found[1:, :, :16, :20], axes().blend(pixels[1:, :, :16, :20], PARTS[1:2]))

    def test_without_sizes_nothing_is_padding(self, pixels: Tensor) -> None:
        assert torch.equal(Padded()(pixels, axes(), None, {}), axes().blend(pixels))

    def test_too_few_sizes(self, pixels: Tensor) -> None:
        with pytest.raises(VPPError, match="image_sizes has 1 rows for 2 images"):
            Padded()(pixels, axes(), None, {"image_sizes": [(24, 32)]})

    def test_gradients_reach_the_prompt(self, pixels: Tensor) -> None:
        module = GlobalVPP(32, border=4)

        Padded()(pixels, module.overlay(), None, {"image_sizes": [(24, 32), (16, 20)]}).sum().backward()

        assert module.prompt.grad is not None
        assert module.prompt.grad.any()

    def test_pickles(self) -> None:
        assert pickle.loads(pickle.dumps(Padded("mask"))) == Padded("mask")
