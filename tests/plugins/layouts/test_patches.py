"""Layouts of flattened patches; what order each family has is tested in test_painting, on its own image processor."""

import pickle

import pytest
import torch
from torch import Tensor

from vpp_plugins import VPPError
from vpp_plugins.plugins.layouts import PaddedPatches, Patches, patch_strip
from vpp_plugins.prompts.global_vpp import GlobalVPP, Overlay

SIDE = 4
"""Pixels of a patch's side."""
LAYOUT = Patches(merge=2, frames=2)


def axes() -> Overlay:
    return GlobalVPP(32, border=4).overlay()


def rows_of(image: Tensor, merge: int = 2, frames: int = 2) -> Tensor:
    """Flatten an image as Qwen-VL does, one patch after the other, by plain loops."""
    height, width = (length // SIDE for length in image.shape[1:])
    patches = [
        image[:, y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE]
        for top in range(0, height, merge)
        for left in range(0, width, merge)
        for y in range(top, top + merge)
        for x in range(left, left + merge)
    ]
    return torch.stack([patch[:, None].expand(-1, frames, -1, -1).flatten() for patch in patches])


def grid_of(*images: Tensor) -> Tensor:
    return torch.tensor([[1, image.shape[1] // SIDE, image.shape[2] // SIDE] for image in images])


class TestPatches:
    @pytest.mark.parametrize("merge", [1, 2, 4])
    @pytest.mark.parametrize("frames", [1, 2, 3])
    def test_images_of_different_sizes(self, merge: int, frames: int) -> None:
        images = [torch.randn(3, 32, 48), torch.randn(3, 16, 64), torch.randn(3, 16, 64)]
        rows = torch.cat([rows_of(image, merge, frames) for image in images])

        found = Patches(merge=merge, frames=frames)(rows, axes(), None, {"grid_thw": grid_of(*images)})

        expected = [rows_of(axes().blend(image[None])[0], merge, frames) for image in images]
        assert torch.equal(found, torch.cat(expected))

    def test_a_merge_for_each_image(self) -> None:
        images = [torch.randn(3, 32, 48), torch.randn(3, 16, 64)]
        rows = torch.cat([rows_of(images[0], 2, 1), rows_of(images[1], 1, 1)])
        call = {"grid_thw": grid_of(*images), "merge_sizes": torch.tensor([2, 1])}

        found = Patches(merge="merge_sizes")(rows, axes(), None, call)

        assert torch.equal(found[-64:], rows_of(axes().blend(images[1][None])[0], 1, 1))

    def test_videos_stay_as_they_are(self) -> None:
        """A grid of several frames is a video's, even beside an image's."""
        image = torch.randn(3, 16, 16)
        rows = torch.cat([torch.randn(3 * 16, 96), rows_of(image)])
        call = {"grid_thw": torch.tensor([[3, 4, 4], [1, 4, 4]])}

        found = LAYOUT(rows, axes(), None, call)

        assert torch.equal(found[:48], rows[:48])
        assert torch.equal(found[48:], rows_of(axes().blend(image[None])[0]))

    def test_windows_are_the_images(self) -> None:
        images, windows = [torch.randn(3, 16, 16)] * 2, [(0.0, 0.0, 1.0, 2.0), (0.0, 0.5, 1.0, 1.0)]
        rows = torch.cat([rows_of(image) for image in images])

        found = LAYOUT(rows, axes(), windows, {"grid_thw": grid_of(*images)})

        expected = axes().blend(torch.stack(images), windows)
        assert torch.equal(found, torch.cat([rows_of(image) for image in expected]))

    @pytest.mark.parametrize("shape", [(-1, 3, 2, SIDE, SIDE), (-1, 3 * 2, SIDE, SIDE)])
    def test_values_in_several_axes(self, shape: tuple[int, ...]) -> None:
        image = torch.randn(3, 16, 16)
        rows, call = rows_of(image), {"grid_thw": grid_of(image)}

        found = LAYOUT(rows.reshape(shape), axes(), None, call)

        assert torch.equal(found, LAYOUT(rows, axes(), None, call).reshape(shape))

    def test_keeps_the_dtype_and_reaches_the_prompt(self) -> None:
        module, image = GlobalVPP(32, border=4), torch.randn(3, 16, 16)

        found = LAYOUT(rows_of(image).bfloat16(), module.overlay(), None, {"grid_thw": grid_of(image)})
        found.float().sum().backward()

        assert found.dtype == torch.bfloat16
        assert module.prompt.grad is not None
        assert module.prompt.grad.any()
        assert not module.prompt.grad[:, module.mask == 0].any()

    def test_missing_grid(self) -> None:
        with pytest.raises(VPPError, match="without 'grid_thw'"):
            LAYOUT(torch.randn(16, 96), axes(), None, {})

    def test_grid_of_other_pixels(self) -> None:
        with pytest.raises(VPPError, match="grid_thw names 24 patches, but 16 came"):
            LAYOUT(torch.randn(16, 96), axes(), None, {"grid_thw": torch.tensor([[1, 4, 6]])})

    def test_windows_of_other_images(self) -> None:
        with pytest.raises(VPPError, match="2 came for 1 images"):
            LAYOUT(torch.randn(16, 96), axes(), [(0.0, 0.0, 1.0, 1.0)] * 2, {"grid_thw": torch.tensor([[1, 4, 4]])})

    def test_pickles(self) -> None:
        assert pickle.loads(pickle.dumps(LAYOUT)) == LAYOUT


class TestPaddedPatches:
    @pytest.fixture
    def images(self) -> list[Tensor]:
        return [torch.randn(3, 8, 16), torch.randn(3, 12, 8)]

    @staticmethod
    def rows(image: Tensor) -> Tensor:
        """Raster order, colours last."""
        return rows_of(image, 1, 1).unflatten(1, (3, -1)).mT.flatten(1)

    def batch(self, images: list[Tensor], columns_before: int = 0) -> Tensor:
        batch = torch.zeros(2, 10, columns_before + 48)
        for index, image in enumerate(images):
            flat = self.rows(image)
            batch[index, : len(flat), columns_before:] = flat
        return batch

    def laid(self, images: list[Tensor]) -> list[Tensor]:
        return [axes().blend(image[None])[0].detach() for image in images]

    def test_grid_of_counts(self, images: list[Tensor]) -> None:
        call = {"spatial_shapes": torch.tensor([[2, 4], [3, 2]])}

        found = PaddedPatches("spatial_shapes")(self.batch(images), axes(), None, call)

        assert torch.equal(found, self.batch(self.laid(images)))

    def test_grid_of_positions(self, images: list[Tensor]) -> None:
        positions = torch.full((2, 10, 2), -1)
        positions[0, :8] = torch.tensor([[x, y] for y in range(2) for x in range(4)])
        positions[1, :6] = torch.tensor([[x, y] for y in range(3) for x in range(2)])

        found = PaddedPatches("ids")(self.batch(images), axes(), None, {"ids": positions})

        assert torch.equal(found, self.batch(self.laid(images)))

    def test_numbered_patches_keep_their_numbers(self, images: list[Tensor]) -> None:
        batch, expected = self.batch(images, 2), self.batch(self.laid(images), 2)
        for rows in (batch, expected):
            rows[0, :8, :2] = torch.tensor([[y, x] for y in range(1, 3) for x in range(1, 5)])
            rows[1, :6, :2] = torch.tensor([[y, x] for y in range(1, 4) for x in range(1, 3)])

        assert torch.equal(PaddedPatches(numbered=True)(batch, axes(), None, {}), expected)

    def test_gradients_reach_the_prompt(self, images: list[Tensor]) -> None:
        module, call = GlobalVPP(32, border=4), {"spatial_shapes": torch.tensor([[2, 4], [3, 2]])}

        PaddedPatches("spatial_shapes")(self.batch(images), module.overlay(), None, call).sum().backward()

        assert module.prompt.grad is not None
        assert module.prompt.grad.any()

    def test_squares_need_no_grid(self) -> None:
        image = torch.randn(3, 16, 16)
        windows = [(0.0, 0.0, 1.0, 0.5)]

        found = PaddedPatches()(self.rows(image)[None], axes(), windows, {})

        assert torch.equal(found[0], self.rows(axes().blend(image[None], windows)[0]))

    def test_too_few_grids(self, images: list[Tensor]) -> None:
        with pytest.raises(VPPError, match="1 grids for 2 images"):
            PaddedPatches("shapes")(self.batch(images), axes(), None, {"shapes": torch.tensor([[2, 4]])})


def test_strip() -> None:
    image = torch.randn(3, 8, 16)
    strip = torch.cat([row.reshape(3, SIDE, SIDE) for row in rows_of(image, 1, 1)], dim=2)[None]

    found = patch_strip(strip, axes(), None, {"target_sizes": torch.tensor([[2, 4]])})

    rows = rows_of(axes().blend(image[None])[0], 1, 1)
    assert torch.equal(found, torch.cat([row.reshape(3, SIDE, SIDE) for row in rows], dim=2)[None])
