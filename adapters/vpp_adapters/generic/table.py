"""What introspection does not show of a host: tables by model type, for the generic adapter.

The orders of patches were read off the image processors, by sending images through them whose pixels are their own
coordinates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vpp_plugins.plugins import PixelLayout
from vpp_plugins.plugins.layouts import Padded, PaddedPatches, Patches, blocks, patch_strip, tiles
from vpp_plugins.prompts import Overlay, Window

REFUSED: Mapping[str, str] = {
    "evolla": "it reads proteins, not images",
    "pi0": "it answers with a robot's actions, not with text",
    "pix2struct": "its image is all it reads, so there is no text in which the prompts could stand",
    "pp_formulanet": "its image is all it reads, so there is no text in which the prompts could stand",
    "udop": "each of its tokens needs a place on the page, which the prompts have not",
    "vision-encoder-decoder": "its image is all it reads, so there is no text in which the prompts could stand",
}
"""Hosts of images and text that cannot take VPP, and why."""

NO_GLOBAL: Mapping[str, str] = {
    "chameleon": "it looks its images up in a book of codes, through which no gradient passes",
    "emu3": "it looks its images up in a book of codes, through which no gradient passes",
}
"""Hosts on which only the local prompt can act, and why."""

ENCODERS: Mapping[str, tuple[str, ...]] = {
    "deepseek_vl_hybrid": ("model.vision_model", "model.high_res_vision_model"),
    "diffusion_gemma": ("model.encoder.vision_tower",),
    "fuyu": ("model.vision_embed_tokens",),
    "gemma4_unified": ("model.embed_vision",),
    "git": ("git.image_encoder",),
    "t5gemma2": ("model.encoder.vision_tower",),
}
"""Vision encoders that `model.get_encoder("image")` does not find, or not all of them."""

BOX_FORMATS: Mapping[str, str] = {
    "cohere_compass": "qwen3-vl",
    "deepseek_ocr2": "deepseek-vl2",
    "florence2": "florence-2",
    "kosmos-2": "kosmos-2",
    "paligemma": "paligemma",
    "qianfan_ocr": "internvl",
    "qwen2_5_omni_thinker": "qwen2.5-vl",
    "qwen3_omni_moe_thinker": "qwen3-vl",
    "unlimited_ocr": "deepseek-vl2",
    **dict.fromkeys(["video_llava", "vipllava"], "llava"),
}
"""Codecs of the hosts that write boxes by a tradition of their own.

Video-LLaVA and ViP-LLaVA learned boxes from LLaVA-1.5's instruction data, with images padded to a square.
"""

PROJECTORS = (
    "aligner",
    "connector",
    "embed_vision",
    "high_res_vision_neck",
    "high_res_vision_proj",
    "image_to_text_projection",
    "language_projection",
    "layerwise_projectors",
    "merger",
    "mm_projector",
    "multi_modal_projector",
    "perception_emb_norm",
    "projector",
    "qformer",
    "resampler_model",
    "spatial_projectors",
    "vision_adapter",
    "vision_projection",
    "visual_projection",
)
"""transformers' names for what stands beside the vision encoder, between it and the language model."""

INNER_PROJECTORS = (
    "connector",
    "deepstack_merger_list",
    "merger",
    "merger_list",
    "multimodal_embedder",
    "patch_merger",
)
"""transformers' names for projectors within the vision encoder."""


def single_patches(
    pixels: Float[Tensor, "*patches values"],
    overlay: Overlay,
    windows: Sequence[Window] | None,
    call: Mapping[str, Any],
) -> Float[Tensor, "*patches values"]:
    """Patches, colours last, without a word on where they lie: each is an input with a window of its own: Fuyu."""
    side = math.isqrt(pixels.shape[-1] // 3)
    squares = rearrange(pixels.flatten(end_dim=-2), "n (y x c) -> n c y x", c=3, y=side)
    return rearrange(overlay.blend(squares, windows), "n c y x -> n (y x c)").reshape(pixels.shape)


def loose_patches(
    pixels: Float[Tensor, "*one patches 3 side side"],
    overlay: Overlay,
    windows: Sequence[Window] | None,
    call: Mapping[str, Any],
) -> Float[Tensor, "*one patches 3 side side"]:
    """Patches in reading order; the encoder gets them with one more axis in front: PaddleOCR-VL."""
    return Patches("grid_thw")(pixels.flatten(end_dim=-4), overlay, windows, call).reshape(pixels.shape)


def _fixed(layout: PixelLayout) -> Callable[[Any], PixelLayout]:
    return lambda _: layout


LAYOUTS: Mapping[str, Callable[[Any], PixelLayout]] = {
    **dict.fromkeys(["diffusion_gemma", "gemma4"], _fixed(PaddedPatches("pixel_position_ids"))),
    **dict.fromkeys(["hunyuan_vl", "kimi_k25"], _fixed(Patches("grid_thw"))),
    **dict.fromkeys(["idefics2", "idefics3", "smolvlm"], _fixed(Padded("pixel_attention_mask"))),
    **dict.fromkeys(["lighton_ocr", "mistral3", "mistral_large4"], _fixed(Padded("image_sizes"))),
    **dict.fromkeys(["minicpm_ocr", "minicpmv4_6", "minicpmv4_7"], _fixed(patch_strip)),
    **dict.fromkeys(
        ["muse_glimmer", "muse_spark"], lambda vision: Patches(columns="t c y x", frames=vision.patch_temporal)
    ),
    "cosmos3_edge": lambda vision: Patches("grid_thw", vision.spatial_merge_size, columns="t y x c"),
    "fuyu": _fixed(single_patches),
    "gemma4_unified": _fixed(PaddedPatches("image_position_ids")),
    "inkling2": _fixed(Patches("image_grid_thw", columns="t y x c")),
    "inkling_mm_model": _fixed(blocks),
    "kosmos-2.5": _fixed(PaddedPatches(numbered=True)),
    "lfm2_vl": _fixed(PaddedPatches("spatial_shapes")),
    "mllama": _fixed(tiles),
    "molmo2": _fixed(PaddedPatches()),
    "nemotron_h_omni": _fixed(Patches("image_grid_hw")),
    "paddleocr_vl": _fixed(loose_patches),
    "video_llama_3": _fixed(Patches("grid_thw", "merge_sizes")),
}
"""Layouts, made from the vision configuration, of hosts whose pixels are neither planes nor in Qwen-VL's order."""

WHOLE = frozenset(
    """gemma4 gemma4_unified diffusion_gemma hunyuan_vl paddleocr_vl lighton_ocr mistral3 mistral_large4
    muse_glimmer muse_spark cosmos3_edge kosmos-2.5 nemotron_h_omni video_llama_3""".split()
)
"""Of these, the hosts whose every encoder input is one whole image, neither cut nor padded to another shape."""

PADDED = frozenset(["glm5_next"])
"""Hosts with no row above, whose encoder takes `grid_thw`, and whose processor pads images to whole patches."""


def qwen_order(vision: Any) -> Patches:
    """Return the layout of every encoder that takes `grid_thw` and has no row above.

    Blocks of merged patches, each patch colour by colour and repeated in time.
    """
    return Patches("grid_thw", vision.spatial_merge_size, frames=vision.to_dict().get("temporal_patch_size", 1))
