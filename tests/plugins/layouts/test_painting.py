"""The test that counts: axes painted on an image before it is processed equal axes laid over the processed image.

Image processors are the real ones, made from their classes. "Before" is an image of floats, 0 to 1.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from vpp_plugins.attach.windows import to_windows
from vpp_plugins.plugins.backbone import Backbone, PixelLayout
from vpp_plugins.plugins.layouts import Padded, PaddedPatches, Patches, blocks, patch_strip, planes, tiles
from vpp_plugins.processor.tile_boxes import encoder_arguments, tile_boxes
from vpp_plugins.prompts.global_vpp import Overlay
from vpp_plugins.prompts.resample import resample

SIZES = [(9, 13), (12, 8), (9, 13)]
"""Images of patches that need no resizing: rows and columns of merged patches."""


def qwen(**changes: Any) -> Patches:
    return Patches("image_grid_thw", **{"merge": 2, "frames": 2, **changes})


def limits(least: int) -> dict[str, Any]:
    """Pixels that an image must have: as many as that is, none of ours is enlarged."""
    return {"size": {"shortest_edge": least, "longest_edge": 10**7}}


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
COLUMNS_LAST = Patches("image_grid_thw", columns="t y x c")

PATCHES: dict[str, tuple[str, dict[str, Any], PixelLayout, Sequence[tuple[int, int]]]] = {
    "Qwen2-VL": ("Qwen2VL", {}, qwen(), [(28 * h, 28 * w) for h, w in SIZES]),
    "Qwen2.5-VL": ("Qwen2VL", limits(56 * 56), qwen(), [(28 * h, 28 * w) for h, w in SIZES]),
    "Qwen3-VL": ("Qwen2VL", {"patch_size": 16, **HALF}, qwen(), [(32 * h, 32 * w) for h, w in SIZES]),
    "GLM-4V": ("Glm4v", {}, qwen(), [(28 * h, 28 * w) for h, w in SIZES]),
    "GLM-4.6V": ("Glm46V", {}, qwen(), [(28 * h, 28 * w) for h, w in SIZES]),
    "MiniMax-M3": ("MiniMaxM3VL", {}, qwen(), [(28 * h, 28 * w) for h, w in SIZES]),
    "Command Compass": ("CohereCompass", {}, qwen(), [(28 * 14, 28 * 16)]),
    "ERNIE 4.5": ("Ernie4_5_VLMoe", {}, qwen(frames=1), [(28 * h, 28 * w) for h, w in SIZES]),
    "VideoLLaMA 3": ("VideoLlama3", {}, Patches("image_grid_thw", "image_merge_sizes"), [(196, 280), (280, 252)]),
    "VideoLLaMA 3, merged": (
        "VideoLlama3",
        {"merge_size": 2},
        Patches("image_grid_thw", "image_merge_sizes"),
        [(196, 280), (280, 252)],
    ),
    "Cosmos 3 Edge": (
        "Cosmos3Edge",
        {},
        qwen(frames=1, columns="t y x c"),
        [(32 * h, 32 * w) for h, w in SIZES],
    ),
    "PaddleOCR-VL": ("PaddleOCRVL", limits(784), Patches("image_grid_thw"), [(28 * h, 28 * w) for h, w in SIZES]),
    "Kimi K2.5": ("Kimi_K25", {}, Patches("image_grid_thw"), [(28 * h, 28 * w) for h, w in SIZES]),
    "HunYuan-VL": ("HunYuanVL", limits(784), Patches("image_grid_thw"), [(32 * h, 32 * w) for h, w in SIZES]),
    "Nemotron Omni": (
        "NemotronH_Omni_Reasoning_V3",
        {"min_num_patches": 4},
        Patches("image_grid_hw"),
        [(32 * h, 32 * w) for h, w in SIZES],
    ),
    "Muse": (
        "MuseGlimmer",
        {},
        Patches("image_grid_thw", columns="t c y x", frames=2),
        [(28 * h, 28 * w) for h, w in SIZES],
    ),
    "Inkling 2": ("Inkling2", {}, COLUMNS_LAST, [(40 * h, 40 * w) for h, w in SIZES]),
    "Gemma 4": ("Gemma4", {}, PaddedPatches("image_position_ids"), [(48 * 14, 48 * 20), (48 * 20, 48 * 14)]),
    "Gemma 4 unified": ("Gemma4Unified", {}, PaddedPatches("image_position_ids"), [(48 * 14, 48 * 20)]),
    "LFM2-VL": (
        "Lfm2Vl",
        {"do_image_splitting": False},
        PaddedPatches("spatial_shapes"),
        [(32 * h, 32 * w) for h, w in SIZES],
    ),
    "Kosmos-2.5": (  # standardises each image by itself, which painting would change
        "Kosmos2_5",
        {"do_normalize": False, "max_patches": 64},
        PaddedPatches(numbered=True),
        [(8 * 16, 8 * 16)],
    ),
    "MiniCPM-V": ("MiniCPMV4_6", {"max_slice_nums": 1, "scale_resolution": 280}, patch_strip, [(280, 280)]),
    "Pixtral": (
        "Pixtral",
        {"size": {"longest_edge": 224}, "patch_size": 14},
        Padded("image_sizes"),
        [(14 * h, 14 * w) for h, w in SIZES],
    ),
}


def image_processor(name: str, settings: dict[str, Any]) -> Any:
    kind = getattr(transformers, f"{name}ImageProcessor", None)
    if kind is None:
        pytest.skip(f"this transformers has no {name}ImageProcessor")
    return kind(**settings)


def normalisation(processor: Any) -> tuple[Tensor, Tensor]:
    if not processor.do_normalize:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return torch.tensor(processor.image_mean)[:, None, None], torch.tensor(processor.image_std)[:, None, None]


def pixels_of(inputs: Any) -> Tensor:
    return torch.as_tensor(inputs["flattened_patches" if "flattened_patches" in inputs else "pixel_values"])


def band() -> Overlay:
    """Axes as they are used: a band along the edges, half transparent so that errors show."""
    mask = torch.ones(40, 40)
    mask[5:-5, 5:-5] = 0
    return Overlay(torch.randn(3, 40, 40), mask, 0.5, "kept", "bilinear", shrink=False)


@pytest.mark.parametrize("family", PATCHES)
@pytest.mark.parametrize("interior", ["kept", "scaled"])
def test_patches(family: str, interior: Any) -> None:
    name, settings, layout, sizes = PATCHES[family]
    processor, axes = image_processor(name, settings), band()
    axes = Overlay(axes.prompt, axes.mask, axes.alpha, interior, "bilinear", shrink=False)
    mean, std = normalisation(processor)
    images = [torch.rand(3, *size) for size in sizes]
    painted = [axes.blend(((image - mean) / std)[None])[0] * std + mean for image in images]

    plain, expected = (processor(list(p), do_rescale=False, return_tensors="pt") for p in (images, painted))
    found = layout(pixels_of(plain), axes, None, plain)

    assert (found - pixels_of(plain)).abs().max() > 0.5
    torch.testing.assert_close(found, pixels_of(expected), rtol=0, atol=5e-6)


def crops(**changes: Any) -> dict[str, Any]:
    return {"crop_to_patches": True, "min_patches": 1, "max_patches": 6, **changes}


def pinpoints(side: int) -> list[list[int]]:
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [2 * side, 3 * side]]


def square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def shortest(side: int, **changes: Any) -> dict[str, Any]:
    crop = {"crop_size": {"height": side, "width": side}}
    return {"size": {"shortest_edge": side}, **crop, **changes}


TILES: dict[str, tuple[str, dict[str, Any], dict[str, Any], PixelLayout]] = {
    "InternVL": ("GotOcr2", square(448), crops(), planes),
    "LLaVA": ("Llava", shortest(384), {}, planes),
    "LLaVA-NeXT": ("LlavaNext", shortest(336, image_grid_pinpoints=pinpoints(336)), {}, planes),
    "LLaVA-OneVision": (
        "LlavaOnevision",
        {**square(384), "image_grid_pinpoints": pinpoints(384)},
        {},
        planes,
    ),
    "Idefics2": (
        "Idefics2",
        {"size": {"shortest_edge": 378, "longest_edge": 640}, "do_image_splitting": True},
        {},
        Padded("pixel_attention_mask"),
    ),
    "Idefics3": ("Idefics3", {"size": {"longest_edge": 1092}, "max_image_size": {"longest_edge": 364}}, {}, planes),
    "SmolVLM": (
        "SmolVLM",
        {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}},
        {},
        Padded("pixel_attention_mask"),
    ),
    "Gemma 3": ("Gemma3", square(896), {}, planes),
    "Gemma 3, pan and scan": (
        "Gemma3",
        square(896),
        {
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 100,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        planes,
    ),
    "PaliGemma": ("Siglip", square(448), {}, planes),
    "Mistral 3": ("Pixtral", {"size": {"longest_edge": 1120}, "patch_size": 14}, {}, Padded("image_sizes")),
    "Llama 4": ("Llama4", {**square(336), "max_patches": 4}, {}, planes),
    "Aya Vision": ("GotOcr2", square(364), crops(max_patches=12), planes),
    "Cohere 2 Vision": ("Cohere2Vision", {**square(512), "max_patches": 4}, {}, planes),
    "PerceptionLM": ("PerceptionLM", {"tile_size": 448, "max_num_tiles": 4}, {}, planes),
    "DeepSeek-VL": ("DeepseekVL", square(384), {}, planes),
    "Ovis 2": ("Ovis2", square(448), {"crop_to_patches": True, "max_patches": 4}, planes),
    "Llama 3.2 Vision": ("Mllama", {**square(448), "max_image_tiles": 4}, {}, tiles),
    "Aria": ("Aria", {"split_image": True, "max_image_size": 490}, {}, planes),
    "LFM2-VL": ("Lfm2Vl", {"tile_size": 512, "max_tiles": 4}, {}, PaddedPatches("spatial_shapes")),
    "MiniCPM-V": ("MiniCPMV4_6", {"scale_resolution": 448, "max_slice_nums": 4}, {}, patch_strip),
    "Molmo 2": ("Molmo2", {"max_crops": 4}, {}, PaddedPatches()),
    "Inkling": ("Inkling", {}, {}, blocks),
    "Inkling 2": ("Inkling2", {}, {}, COLUMNS_LAST),
    "Kimi K2.5": ("Kimi_K25", {}, {}, Patches("grid_thw")),
    "Qwen2-VL": ("Qwen2VL", {}, {}, Patches("grid_thw", 2, frames=2)),
}


class Processor:
    """An image processor in the place of a whole one, with settings of its own: the text does not matter here."""

    def __init__(self, image_processor: Any, settings: dict[str, Any]) -> None:
        self.image_processor, self.settings = image_processor, settings

    def __call__(self, images: list[Tensor], text: list[str] | None = None, **settings: Any) -> Any:
        return self.image_processor(images, **{**self.settings, **settings})


def backbone(layout: PixelLayout, frame: Any = "image") -> Backbone:
    return Backbone(
        adapter="mine",
        hidden_size=3,
        vision_encoders=(),
        box_format="llava",
        frame=frame,
        pixel_layout=layout,
        tiled=True,
        image_token="<image>",
    )


def smooth_axes() -> Tensor:
    """Some image without edges, of standard deviation about 0.9: what two ways of resampling can agree on."""
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(torch.randn(1, 3, 6, 6, generator=generator), size=(48, 48), mode="bicubic")[0]


def opaque(image: Tensor) -> Overlay:
    return Overlay(image, torch.ones(image.shape[1:]), 0.0, "kept", "bilinear", shrink=False)


def compare(found: Tensor, expected: Tensor) -> None:
    """Two ways of resampling cannot agree to the last bit; axes of each tile's own would be off by 0.2 to 0.8."""
    error = (found - expected).abs().flatten()
    assert found.shape == expected.shape
    assert found.float().std() > 0.5
    rounding = 2**-6 if found.dtype == torch.bfloat16 else 0.0  # Llama 4's processor counts in it
    assert error.median() <= 2.0e-4
    assert error.kthvalue(int(0.99 * len(error))).values <= 1.7e-3 + rounding


@pytest.mark.parametrize("family", TILES)
@pytest.mark.parametrize("size", [(400, 560), (600, 380)], ids=["wide", "tall"])
@torch.no_grad()
def test_tiles(family: str, size: tuple[int, int]) -> None:
    name, settings, options, layout = TILES[family]
    processor = Processor(image_processor(name, settings), options)
    mean, std = normalisation(processor.image_processor)
    axes = smooth_axes()
    # 0 to 255, because processors pad with colours of that range
    plain, expected = (
        processor([image * 255], return_tensors="pt")
        for image in (torch.rand(3, *size), resample(axes, size) * std + mean)
    )
    windows = to_windows(tile_boxes(processor, [size], backbone(layout)))

    found = layout(pixels_of(plain), opaque(axes), windows, encoder_arguments(plain))

    compare(found, pixels_of(expected))


@pytest.mark.parametrize("size", [(280, 400), (400, 260)], ids=["wide", "tall"])
@torch.no_grad()
def test_padded_square(size: tuple[int, int]) -> None:
    """LLaVA-1.5 lays the axes over the square that its processor pads to, so the padding is painted too."""
    processor = image_processor("Llava", shortest(672, do_pad=True))
    mean, std = normalisation(processor)
    axes, side = smooth_axes(), max(size)
    image = torch.rand(3, *size)
    painted = resample(axes, (side, side)) * std + mean

    found = planes(processor([image * 255], return_tensors="pt")["pixel_values"], opaque(axes), None, {})

    compare(found, processor([painted * 255], return_tensors="pt")["pixel_values"])


@torch.no_grad()
def test_several_images_of_different_sizes_in_tiles() -> None:
    """Every image has its own tiles and windows; they come one after the other."""
    processor = Processor(image_processor("GotOcr2", square(224)), crops())
    mean, std = normalisation(processor.image_processor)
    axes, sizes = smooth_axes(), [(300, 420), (500, 260), (240, 240)]
    plain, expected = (
        processor([image * 255 for image in images], return_tensors="pt")["pixel_values"]
        for images in (
            [torch.rand(3, *size) for size in sizes],
            [resample(axes, size) * std + mean for size in sizes],
        )
    )
    windows = to_windows(tile_boxes(processor, sizes, backbone(planes)))

    found = planes(plain, opaque(axes), windows, {})

    assert (found - expected).abs().median() < 2.0e-4


@torch.no_grad()
@pytest.mark.parametrize("layout", [Padded("image_sizes"), Padded("pixel_attention_mask")])
def test_images_padded_to_the_batch(layout: Padded) -> None:
    """Padding is no image: the axes end where each image does."""
    name, settings = {
        "image_sizes": ("Pixtral", {"size": {"longest_edge": 224}, "patch_size": 14}),
        "pixel_attention_mask": ("Idefics2", {"size": {"shortest_edge": 40, "longest_edge": 224}}),
    }[layout.sizes]
    processor, axes = image_processor(name, {**settings, **HALF}), band()
    sizes = [(112, 168), (224, 84), (168, 168)]
    images = [torch.rand(3, *size) for size in sizes]
    painted = [axes.blend((image * 2 - 1)[None])[0] / 2 + 0.5 for image in images]

    plain, expected = (processor(list(p), do_rescale=False, return_tensors="pt") for p in (images, painted))
    found = layout(plain["pixel_values"], axes, None, plain)

    torch.testing.assert_close(found, expected["pixel_values"], rtol=0, atol=5e-6)
