"""What each encoder input shows of its image, asked of real image processors and of made-up ones."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from tests.families import FAMILIES
from vpp_plugins import VPPError
from vpp_plugins.attach.windows import to_windows
from vpp_plugins.plugins.backbone import Backbone
from vpp_plugins.plugins.registry import describe
from vpp_plugins.processor.tile_boxes import NOWHERE, tile_boxes, to_tile_boxes

SIZE = (500, 800)
WHOLE = [0.0, 0.0, 1.0, 1.0]


def backbone(**changes: Any) -> Backbone:
    return Backbone(
        **{
            "adapter": "mine",
            "hidden_size": 3,
            "vision_encoders": (),
            "box_format": "llava",
            "frame": "image",
            "image_token": "<image>",
            "tiled": True,
            **changes,
        }
    )


class Processor:
    """An image processor in the place of a whole one; counts its calls."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor, self.calls = image_processor, 0

    def __call__(self, images: list[Tensor], text: list[str], **settings: Any) -> Any:
        self.calls += 1
        return self.image_processor(images, **settings)


class Cutter:
    """A made-up image processor that shows the given windows, in pixels of the image: left, top, right, bottom."""

    def __init__(self, *windows: Sequence[int], zoom: float = 1.0, colour: float = 0.0) -> None:
        self.windows, self.zoom, self.colour = windows, zoom, colour

    def to_json_string(self) -> str:
        return json.dumps(self.windows)

    def __call__(self, images: list[Tensor], **_: Any) -> dict[str, Tensor]:
        height, width = images[0].shape[1:]
        cut = [
            F.pad(images[0], (-left, right - width, -top, bottom - height), value=self.colour)
            for left, top, right, bottom in self.windows
        ]
        size = [round(length * self.zoom) for length in cut[0].shape[1:]]
        return {"pixel_values": torch.stack([F.interpolate(one[None], size, mode="bilinear")[0] for one in cut])}


def boxes(
    processor: Any, sizes: Sequence[tuple[int, int]], described: Backbone | None = None, **settings: Any
) -> Tensor:
    """The boxes in units of the frame."""
    found = tile_boxes(processor, sizes, described or backbone(), **settings)
    return torch.tensor(to_windows(found)).reshape(found.shape)


class TestRealProcessors:
    def test_internvl(self) -> None:
        """Row by row, squashed to the grid without padding; the thumbnail last."""
        processor = Processor(transformers.GotOcr2ImageProcessor(size={"height": 112, "width": 112}))

        found = boxes(processor, [SIZE], crop_to_patches=True, min_patches=1, max_patches=6)

        grid = [[c / 3, r / 2, (c + 1) / 3, (r + 1) / 2] for r in range(2) for c in range(3)]
        torch.testing.assert_close(found, torch.tensor([*grid, WHOLE]), rtol=0, atol=3e-5)

    def test_llava_next(self) -> None:
        """The whole image first, squashed; then tiles of a canvas on which the image stands in the middle."""
        processor = Processor(
            transformers.LlavaNextImageProcessor(
                size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=[[672, 672]]
            )
        )

        found = boxes(processor, [SIZE])

        expected = [WHOLE, [0, -0.3, 0.5, 0.5], [0.5, -0.3, 1, 0.5], [0, 0.5, 0.5, 1.3], [0.5, 0.5, 1, 1.3]]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-4)

    @pytest.mark.parametrize(
        ("pad", "frame", "expected"),
        [
            (False, "image", [0.1875, 0, 0.8125, 1]),
            (True, "image", [0, -0.3, 1, 1.3]),
            (True, "square", WHOLE),
        ],
        ids=["sides cropped away", "padded", "padded, axes on the square"],
    )
    def test_llava(self, pad: bool, frame: str, expected: list[float]) -> None:
        processor = Processor(
            transformers.LlavaImageProcessor(
                size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_pad=pad
            )
        )

        found = boxes(processor, [SIZE], backbone(frame=frame))

        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32), rtol=0, atol=2e-3)

    def test_processors_of_pil(self) -> None:
        """Eight bits hold coordinates less exactly, but the line through all of them does well."""
        kinds = (transformers.Idefics3ImageProcessor, transformers.Idefics3ImageProcessorPil)
        settings = {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 112}}

        exact, found = (boxes(Processor(kind(**settings)), [SIZE]) for kind in kinds)

        torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
    def test_qwens_images_on_the_padded_square(self, family: str) -> None:
        """The axes may span the square also where they usually span the image; an image repeated in time is one."""
        described = replace(describe(FAMILIES[family].model(), None), frame="square")

        found = boxes(FAMILIES[family].processor(), [(112, 224), (224, 224)], described)

        torch.testing.assert_close(found, torch.tensor([[0, 0.25, 1, 0.75], WHOLE]), rtol=0, atol=1e-3)

    @pytest.mark.parametrize("family", ["internvl", "llava_next", "llava_onevision"])
    def test_whole_processors_of_the_named_families(self, family: str) -> None:
        """The order is the one in which the encoder gets them: that of `pixel_values`, without padding."""
        described, processor = describe(FAMILIES[family].model(), None), FAMILIES[family].processor()
        sizes = [(24, 40), (40, 24), (32, 32)]

        found = boxes(processor, sizes, described)

        assert torch.equal(found, torch.cat([boxes(processor, [size], described) for size in sizes]))
        images = [torch.zeros(3, *size, dtype=torch.uint8) + 255 for size in sizes]
        pixels = processor(images=images, text=[FAMILIES[family].image] * 3, return_tensors="pt", padding=True)
        tiles = pixels["pixel_values"].flatten(end_dim=-4)
        assert len(found) == int(tiles.flatten(1).any(1).sum())


class TestReading:
    def test_any_cut(self) -> None:
        """The window that a processor shows comes back, whatever the sizes."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            height, width, left, top, side = torch.randint(20, 90, (5,), generator=generator).tolist()
            left, top = left - 60, top - 60
            if min(left + side, top + side) <= 0:
                continue  # beside the image

            window = (left, top, left + side, top + side)
            found = boxes(Processor(Cutter(window)), [(height, width)])

            expected = torch.tensor([window]) / torch.tensor([width, height, width, height])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("zoom", [0.4, 1.0, 2.5])
    @pytest.mark.parametrize("colour", [0.0, 127.0, -1.0])
    def test_whatever_the_padding_and_the_resizing(self, zoom: float, colour: float) -> None:
        windows = [(-10, -5, 90, 75), (40, 20, 140, 100)]

        found = boxes(Processor(Cutter(*windows, zoom=zoom, colour=colour)), [(60, 80)])

        torch.testing.assert_close(found, torch.tensor(windows) / torch.tensor([80, 60, 80, 60]), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("columns", [1, 2, 3, 7])
    def test_slivers(self, columns: int) -> None:
        """A tile may show a column or two of the image, and padding: axes must not reach into that."""
        windows = [(80 - columns, 0, 140 - columns, 60), (columns - 60, 0, columns, 60)]

        found = boxes(Processor(Cutter(*windows)), [(60, 80)])

        torch.testing.assert_close(found, torch.tensor(windows) / torch.tensor([80, 60, 80, 60]), rtol=0, atol=1e-5)

    def test_a_tile_of_padding(self) -> None:
        found = boxes(Processor(Cutter((0, 0, 80, 60), (80, 0, 160, 60))), [(60, 80)])

        assert torch.equal(found, torch.tensor([WHOLE, NOWHERE]))

    def test_the_smallest_image(self) -> None:
        torch.testing.assert_close(boxes(Processor(Cutter((0, 0, 8, 8))), [(8, 8)]), torch.tensor([WHOLE]))

    def test_no_image(self) -> None:
        assert boxes(Processor(Cutter()), []).shape == (0, 4)

    def test_two_image_arguments(self) -> None:
        """The encoder gets all of the first before all of the second, which a small image may lack."""

        class TwoViews(Cutter):
            def __call__(self, images: list[Tensor], **_: Any) -> dict[str, Tensor]:
                halves = Cutter((0, 0, 40, 60), (40, 0, 80, 60))(images)["pixel_values"]
                whole = {"pixel_values": images[0][None]}
                return whole if images[0].shape[1] < 60 else {**whole, "pixel_values_local": halves}

        described = backbone(image_arguments=("pixel_values", "pixel_values_local"))

        found = boxes(Processor(TwoViews()), [(60, 80), (30, 40), (60, 80)], described)

        halves = [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
        torch.testing.assert_close(found, torch.tensor([WHOLE, WHOLE, WHOLE, *halves, *halves], dtype=torch.float32))


class TestWholeNumbers:
    def test_name_a_window_to_the_millionth(self) -> None:
        windows = [(0.0, -0.25, 1.0, 1.5), (1 / 3, 2 / 3, 1e-7, -1 / 3)]

        found = to_tile_boxes(windows)

        assert found.dtype == torch.int64
        torch.testing.assert_close(torch.tensor(to_windows(found)), torch.tensor(windows), rtol=0, atol=5.1e-7)
        assert to_windows(found)[0] == windows[0]

    def test_survive_a_cast_of_the_inputs(self) -> None:
        """As floats they moved by up to 4 thousandths of the image in bfloat16, and the axes with them."""
        inputs = transformers.BatchFeature({"vpp_tile_boxes": to_tile_boxes([(1 / 3, 0.25, 2 / 3, 1 / 7)])})

        cast = transformers.BatchFeature(dict(inputs)).to(torch.bfloat16)

        assert torch.equal(cast["vpp_tile_boxes"], inputs["vpp_tile_boxes"])


class TestAnswersAreKept:
    def test_for_each_size(self) -> None:
        processor = Processor(Cutter((0, 0, 80, 60)))

        boxes(processor, [(60, 80)] * 3)
        boxes(processor, [(60, 80)])

        assert processor.calls == 1

    def test_until_a_setting_changes(self) -> None:
        processor = Processor(transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}))

        assert len(boxes(processor, [SIZE])) == 1
        assert len(boxes(processor, [SIZE], crop_to_patches=True, max_patches=6)) == 7
        processor.image_processor.crop_to_patches = True
        assert len(boxes(processor, [SIZE], max_patches=6)) == 7
        assert len(boxes(processor, [SIZE], backbone(frame="square"), max_patches=6)) == 7

    def test_not_for_another_processor(self) -> None:
        class Half(Cutter):
            def to_json_string(self) -> str:
                return "the same"

        first, second = Processor(Half((0, 0, 80, 60))), Processor(Half((0, 0, 40, 60)))

        assert not torch.equal(boxes(first, [(60, 80)]), boxes(second, [(60, 80)]))


def test_a_processor_that_takes_no_floats() -> None:
    class Stubborn(Cutter):
        def __call__(self, images: list[Tensor], **_: Any) -> dict[str, Tensor]:
            raise ValueError("only 8-bit images")

    with pytest.raises(VPPError, match=r"fails on an image of floats \(only 8-bit images\)"):
        boxes(Processor(Stubborn()), [SIZE])
