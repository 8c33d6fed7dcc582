"""A tiny random host of every architecture, and a batch of inputs for it with and without placeholders."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.zoo.images import random_images
from tests.zoo.settings import SETTINGS
from tests.zoo.shrink import shrunk_config
from vpp_plugins.plugins.layouts import Patches
from vpp_plugins.plugins.registry import describe
from vpp_plugins.processor.tile_boxes import encoder_arguments, to_tile_boxes
from vpp_plugins.prompts.global_vpp import Overlay
from vpp_plugins.prompts.resample import Window
from vpp_plugins.testing import sample_pixels

ARCHITECTURES: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
"""transformers' class of every model type that takes images and text and answers with text."""
PLACEHOLDER = 90
QUERIES = 4
WORDS = range(3, 60)
"""Ids that are nothing but text."""

ONE_EACH = "blip granite_docling idefics idefics2 idefics3 git kosmos-2 kosmos-2.5 mllama smolvlm".split()
"""Hosts that want their images grouped by text, or take one for each."""
TOKENS = {
    **dict.fromkeys(["blip", "git", "idefics"], 0),
    **dict.fromkeys(["diffusion_gemma", "kosmos-2", "kosmos-2.5", "t5gemma2"], 4),
    "fuyu": 16,
    "granite4_vision": 14,
    "instructblipvideo": 8,
    "llama4": 8,
    "mllama": 1,
    "video_llava": 16,
}
"""Tokens that stand for an image, in hosts that cannot be asked."""
IMAGE_ID = 100
"""The image token of every host here."""


def tiny_host(model_type: str) -> Any:
    """Build the random host; its generate does not stop before its limit."""
    torch.manual_seed(0)
    model = getattr(transformers, ARCHITECTURES[model_type])(shrunk_config(model_type, SETTINGS.get(model_type, {})))
    if model.can_generate():
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        model.generation_config.bad_words_ids = [[IMAGE_ID]]  # no host takes an answer for an image
    _wake(model)
    return model.eval()


@torch.no_grad()
def _wake(model: nn.Module) -> None:
    """Give numbers to what starts at zero: gates let nothing through, and norms of zero rows have no gradient."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].normal_(std=0.02)


def inputs_of(model_type: str, model: Any) -> dict[str, Any]:
    """Return what VPPProcessor would make: two texts, padded on the left, placeholders after each image."""
    torch.manual_seed(1)
    per_text = (1, 1) if model_type in ONE_EACH else (2, 1)
    pixels = random_images(model_type, model.config, sum(per_text))
    images = sum(per_text)
    tokens = [TOKENS[model_type]] * images if model_type in TOKENS else tokens_of_images(model, pixels, images)
    around = _around(model.config.to_dict())
    ids, mask = padded([_text(tokens[: per_text[0]], around, 0), _text(tokens[per_text[0] :], around, 1)])
    names = inspect.signature(type(model).forward).parameters
    types = {name: (ids == IMAGE_ID).long() for name in ("token_type_ids", "mm_token_type_ids") if name in names}
    call = {"input_ids": ids, "attention_mask": mask, **pixels, **types, **_places(model_type, ids)}
    call["vpp_pixel_values"] = sample_pixels(images)
    boxes = tile_boxes(model, call)
    return call if boxes is None else call | {"vpp_tile_boxes": boxes}


def _places(model_type: str, ids: Tensor) -> dict[str, Tensor]:
    """Where the images act, and what the answers begin with, in hosts that want to be told."""
    if model_type in ("kosmos-2", "kosmos-2.5"):
        return {"image_embeds_position_mask": (ids == IMAGE_ID).long()}
    if model_type == "idefics":
        return {"image_attention_mask": torch.ones(*ids.shape, 1)}
    if model_type == "t5gemma2":
        return {"decoder_input_ids": ids.clamp(max=9)}
    if model_type == "mllama":
        return {"cross_attention_mask": torch.ones(*ids.shape, 1, 2, dtype=torch.long)}
    return {}


class Counting(Overlay):
    """An overlay that lays nothing over the inputs that a layout gives it, and counts them."""

    inputs = 0

    def blend(self, pixels: Tensor, windows: Sequence[Window] | None = None) -> Tensor:
        self.inputs += len(pixels)
        return pixels


def tile_boxes(model: Any, call: dict[str, Any]) -> Tensor | None:
    """Return a window for every encoder input, all different; None where the adapter wants none."""
    backbone = describe(model)
    if not backbone.tiled:
        return None
    counting = Counting(torch.zeros(3, 1, 1), torch.zeros(1, 1), 1.0, "kept", "bilinear", shrink=False)
    for name in backbone.image_arguments:
        if call.get(name) is not None:
            backbone.pixel_layout(call[name], counting, None, encoder_arguments(call))
    layout = backbone.pixel_layout
    frames = layout.frames if isinstance(layout, Patches) else 1  # of an image, which have one window
    steps = [index / 50 for index in range(counting.inputs // frames)]
    return to_tile_boxes([(step, -step, 1 + step, 1 - 2 * step) for step in steps])


def tokens_of_images(model: Any, pixels: dict[str, Any], count: int) -> list[int]:
    """Ask the host how many of its tokens stand for each image."""
    base = model.base_model
    names = inspect.signature(base.get_image_features).parameters
    with torch.no_grad():
        features = base.get_image_features(**{k: v for k, v in pixels.items() if k in names}, return_dict=True)
    rows = [part[..., 0].numel() for part in features.pooler_output]
    return rows if len(rows) == count else [sum(rows) // count] * count


def padded(texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Pad on the left with zeros; return ids and mask."""
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def _around(config: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the tokens before and after each image's: some hosts count images by them."""
    start, end = (
        [config[name] for name in (f"vision_{side}_token_id", f"image_{side}_token_id") if config.get(name) is not None]
        for side in ("start", "end")
    )
    return start[:1], end[:1]


def _text(tokens: Sequence[int], around: tuple[list[int], list[int]], start: int) -> list[int]:
    """Words, and among them each image's tokens and placeholders."""
    words = torch.tensor(WORDS)[torch.randperm(len(WORDS))].tolist()
    text: list[int] = words[: 3 + start]
    for place, count in enumerate(tokens):
        image = [IMAGE_ID] * count + [PLACEHOLDER] * QUERIES
        text += around[0] + image + around[1] + words[10 + 2 * place : 12 + 2 * place]
    return text + words[20:24]
