"""Random pixels for every architecture, in the arguments and shapes that its image processor would give."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import FuyuForCausalLM, VideoLlavaForConditionalGeneration

Pixels = dict[str, Any]
ROWS, COLUMNS = 4, 6
"""Patches of one image in hosts that take flattened patches."""
GRID = [1, ROWS, COLUMNS]


def random_images(model_type: str, config: Any, count: int) -> Pixels:
    """Return the pixel arguments of `count` images."""
    return _MAKERS.get(model_type, planes)(config, count)


def planes(config: Any, count: int) -> Pixels:
    """One square per image: CLIP-like encoders."""
    return {"pixel_values": torch.randn(count, 3, *_size(config))}


def planes_of(side: int) -> Callable[[Any, int], Pixels]:
    """One square per image, where the configuration does not tell its side."""
    return lambda _config, count: {"pixel_values": torch.randn(count, 3, side, side)}


def sized_planes(config: Any, count: int) -> Pixels:
    """Images padded to the largest, and how much of each is image: Pixtral."""
    height, width = 48, 32
    return {
        "pixel_values": torch.randn(count, 3, height, width),
        "image_sizes": torch.tensor([[height, width]] * count),
    }


def tokenised(config: Any, count: int) -> Pixels:
    """Images that the host turns into codes of a book: Emu3."""
    return {"pixel_values": torch.randn(count, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]] * count)}


def tiles(config: Any, count: int) -> Pixels:
    """The whole image first, then its tiles: LLaVA-NeXT."""
    side = config.vision_config.image_size
    return {
        "pixel_values": torch.randn(count, 3, 3, side, side),
        "image_sizes": torch.tensor([[side, 2 * side]] * count),
    }


def tiles_without_sizes(config: Any, count: int) -> Pixels:
    """Two tiles of every image: PerceptionLM."""
    return {"pixel_values": torch.randn(count, 2, 3, 28, 28)}


def flat_tiles(config: Any, count: int) -> Pixels:
    """Two tiles of every image, one after the other: InternVL."""
    return {"pixel_values": torch.randn(2 * count, 3, *_size(config))}


def two_views(config: Any, count: int) -> Pixels:
    """The same images for a second, finer encoder: DeepSeek-VL hybrid."""
    return planes(config, count) | {"high_res_pixel_values": torch.randn(count, 3, 128, 128)}


def local_crops(side: int) -> Callable[[Any, int], Pixels]:
    """The whole image, and crops apart: two of the first image, none of the others."""

    def make(_config: Any, count: int) -> Pixels:
        return {
            "pixel_values": torch.randn(count, 3, side, side),
            "pixel_values_local": torch.randn(2, 3, side, side),
            "num_local_patches": [2] + [0] * (count - 1),
        }

    return make


def ocr_crops(config: Any, count: int) -> Pixels:
    """As `local_crops`, with the crops' columns and rows."""
    return local_crops(128)(config, count) | {"patches_grid": [[2, 1]] + [[1, 1]] * (count - 1)}


def patches(config: Any, count: int) -> Pixels:
    """Flattened patches of all images, and their grids: Qwen-VL."""
    vision = config.vision_config.to_dict()
    side = vision["patch_size"]
    frames = vision.get("temporal_patch_size", vision.get("patch_temporal", 1))
    return _grids(torch.randn(count * ROWS * COLUMNS, 3 * frames * side * side), count)


def merged_patches(config: Any, count: int) -> Pixels:
    """Flattened patches whose merging the caller chooses: VideoLLaMA3."""
    return patches(config, count) | {"image_merge_sizes": torch.tensor([2] * count)}


def grid_hw_patches(config: Any, count: int) -> Pixels:
    """Flattened patches with grids of height and width: Nemotron-H Omni."""
    side = config.vision_config.patch_size
    return {
        "pixel_values": torch.randn(count * ROWS * COLUMNS, 3 * side * side),
        "image_grid_hw": torch.tensor([GRID[1:]] * count),
    }


def square_patches(config: Any, count: int) -> Pixels:
    """Patches that are still little images: Kimi, PaddleOCR."""
    side = config.vision_config.patch_size
    return _grids(torch.randn(count * ROWS * COLUMNS, 3, side, side), count)


def merged_blocks(config: Any, count: int) -> Pixels:
    """Blocks of merged patches, colours last: Inkling 2."""
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    return {
        "pixel_values": torch.randn(count * ROWS * COLUMNS, side, side, 3),
        "image_grid_thw": torch.tensor([GRID] * count),
    }


def frame_patches(config: Any, count: int) -> Pixels:
    """Patches with a time axis, colours last: Inkling."""
    vision = config.vision_config
    return {"pixel_values": torch.randn(3 * count, vision.temporal_patch_size, vision.patch_size, vision.patch_size, 3)}


def strip_of_patches(config: Any, count: int) -> Pixels:
    """All patches side by side in one strip: MiniCPM-V."""
    side, patches = config.vision_config.patch_size, 4 * 8
    return {
        "pixel_values": torch.randn(1, 3, side, count * patches * side),
        "target_sizes": torch.tensor([[4, 8]] * count, dtype=torch.int32),
    }


def placed_patches(side: int) -> Callable[[Any, int], Pixels]:
    """Patches with their places in the image, in [0, 1]: Gemma 4."""

    def make(_config: Any, count: int) -> Pixels:
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1)
        return {
            "pixel_values": torch.rand(count, 16, 3 * side * side),
            "image_position_ids": places.expand(count, -1, -1).clone(),
        }

    return make


def masked_patches(config: Any, count: int) -> Pixels:
    """Patches padded to a fixed number, with a mask: LFM2-VL."""
    side = config.vision_config.patch_size
    return {
        "pixel_values": torch.randn(count, 16, 3 * side * side),
        "pixel_attention_mask": torch.ones(count, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * count),
    }


def pooled_crops(config: Any, count: int) -> Pixels:
    """Patches of crops, and which of them each token pools: Molmo 2."""
    side = config.vision_config.patch_size
    return {
        "pixel_values": torch.randn(count, 16, 3 * side * side),
        "image_token_pooling": torch.arange(16 * count).reshape(-1, 4),
        "image_grids": torch.tensor([[2, 2, 0, 0]] * count),
        "image_num_crops": torch.tensor([1] * count),
    }


def numbered_patches(config: Any, count: int) -> Pixels:
    """Patches that begin with their row and column: Kosmos-2.5."""
    places = 1 + torch.cartesian_prod(torch.arange(4), torch.arange(4)).float()
    return {"flattened_patches": torch.cat([places.expand(count, -1, -1), torch.randn(count, 16, 3 * 4 * 4)], dim=2)}


def named_planes(config: Any, count: int) -> Pixels:
    """As `planes`, under the name that Video-LLaVA's release of transformers has for images."""
    names = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
    name = "pixel_values_images" if "pixel_values_images" in names else "pixel_values"
    return {name: planes(config, count)["pixel_values"]}


def bare_patches(config: Any, count: int) -> Pixels:
    """Patches alone: Fuyu, under the name that its release of transformers has for them."""
    name = (
        "pixel_values" if "pixel_values" in inspect.signature(FuyuForCausalLM.forward).parameters else "image_patches"
    )
    return {name: torch.randn(count, 16, 3 * config.patch_size**2)}


def nested(config: Any, count: int) -> Pixels:
    """One image for each text, in a dimension of its own: Idefics2."""
    height, width = _size(config)
    return {
        "pixel_values": torch.randn(count, 1, 3, height, width),
        "pixel_attention_mask": torch.ones(count, 1, height, width, dtype=torch.bool),
    }


def nested_tiles(config: Any, count: int) -> Pixels:
    """Three tiles for each text: Idefics3."""
    height, width = _size(config)
    return {
        "pixel_values": torch.randn(count, 3, 3, height, width),
        "pixel_attention_mask": torch.ones(count, 3, height, width, dtype=torch.bool),
    }


def masked_tiles(config: Any, count: int) -> Pixels:
    """Three tiles for each text, with a mask of tiles: Granite Docling."""
    return nested_tiles(config, count) | {"pixel_attention_mask": torch.ones(count, 3, dtype=torch.bool)}


def shaped_tiles(config: Any, count: int) -> Pixels:
    """Two tiles of one image for each text, and the shape they form: Mllama."""
    height, width = _size(config)
    return {
        "pixel_values": torch.randn(count, 1, 2, 3, height, width),
        "aspect_ratio_ids": torch.ones(count, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(count, 1, 2, dtype=torch.long),
    }


def video_of_frames(config: Any, count: int) -> Pixels:
    """Two frames of every image: InstructBLIP-Video."""
    return {"pixel_values": torch.randn(count, 2, 3, *_size(config))} | _question(count)


def with_question(config: Any, count: int) -> Pixels:
    """Images, and the question for the query former: InstructBLIP."""
    return planes(config, count) | _question(count)


def one_nested(config: Any, count: int) -> Pixels:
    """One image for each text: Idefics."""
    return {"pixel_values": torch.randn(count, 1, 3, *_size(config))}


def _question(count: int) -> Pixels:
    ids = torch.arange(3, 8).expand(count, -1).clone()
    return {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}


def _size(config: Any) -> tuple[int, int]:
    side = (config.to_dict().get("vision_config") or {}).get("image_size", 32)
    return (side, side) if isinstance(side, int) else tuple(side)


def _grids(pixels: Tensor, count: int) -> Pixels:
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([GRID] * count)}


_PATCHES = """cohere_compass cosmos3_omni exaone4_5 glm46v glm4v glm4v_moe glm5_next glm_ocr glmga hyperclovax_vision_v2
    lfm3_vl minimax_m3_vl muse_glimmer muse_spark qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe
    qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp cosmos3_edge dots3_note ernie4_5_vl_moe hunyuan_vl""".split()

_MAKERS: dict[str, Callable[[Any, int], Pixels]] = {
    **dict.fromkeys(_PATCHES, patches),
    **dict.fromkeys(["kimi_k25", "paddleocr_vl"], square_patches),
    **dict.fromkeys(["llava_next", "llava_next_video", "llava_onevision", "granite4_vision"], tiles),
    **dict.fromkeys(["lighton_ocr", "mistral3", "mistral_large4"], sized_planes),
    **dict.fromkeys(["idefics3", "smolvlm"], nested_tiles),
    **dict.fromkeys(["internvl", "qianfan_ocr", "aya_vision", "cohere2_vision", "llama4"], flat_tiles),
    **dict.fromkeys(["minicpm_ocr", "minicpmv4_6", "minicpmv4_7"], strip_of_patches),
    **dict.fromkeys(["gemma4", "diffusion_gemma"], placed_patches(4)),
    **dict.fromkeys(["got_ocr2", "pp_chart2table"], planes_of(128)),
    **dict.fromkeys(["fast_vlm", "gemma3n"], planes_of(64)),
    "chameleon": planes_of(16),
    "deepseek_ocr2": local_crops(128),
    "deepseek_vl_hybrid": two_views,
    "emu3": tokenised,
    "fuyu": bare_patches,
    "gemma4_unified": placed_patches(8),
    "granite_docling": masked_tiles,
    "idefics": one_nested,
    "idefics2": nested,
    "inkling2": merged_blocks,
    "inkling_mm_model": frame_patches,
    "instructblip": with_question,
    "instructblipvideo": video_of_frames,
    "kosmos-2.5": numbered_patches,
    "lfm2_vl": masked_patches,
    "mllama": shaped_tiles,
    "molmo2": pooled_crops,
    "nemotron_h_omni": grid_hw_patches,
    "perception_lm": tiles_without_sizes,
    "step3p7": local_crops(32),
    "unlimited_ocr": ocr_crops,
    "video_llama_3": merged_patches,
    "video_llava": named_planes,
}
