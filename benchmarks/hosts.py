"""The LLaVA that attaching is measured on, at any size, at random weights, and inputs for it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, attach_vpp
from vpp_plugins.testing import TINY_DETR

IMAGE_ID, VPP_ID, FILLER_ID = 4, 5, 6
IMAGE_TOKENS = 16


def build_host(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> LlavaForConditionalGeneration:
    """Return a LLaVA whose language model has these sizes; its vision encoder is tiny."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
        ),
        image_token_id=IMAGE_ID,
    )
    return LlavaForConditionalGeneration(config).eval()


def attach(host: Any, queries: int, detector: Mapping[str, Any] = TINY_DETR, side: int = 64) -> Any:
    """Attach both prompts, by default with a detector so small that it does not drown what is measured."""
    local = LocalVPPConfig(num_queries=queries, image_size=side, projector_size=16, generator_options=dict(detector))
    attach_vpp(host, VPPConfig(global_vpp=GlobalVPPConfig(size=32, border=4), local_vpp=local))
    host.vpp.bind_token(VPP_ID)
    host.vpp.trained = True  # it is not, and would say so
    return host


def sharing(model: Any) -> Any:
    """Return a copy of the model on the very same weights and buffers, so that memory and caches favour neither."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def plain_inputs(text_tokens: int, extra_tokens: int = 0, images: int = 1) -> dict[str, Tensor]:
    """Return images and a text; `extra_tokens` stand where each image's placeholders would."""
    ids = [1, *[*[IMAGE_ID] * IMAGE_TOKENS, *[FILLER_ID] * extra_tokens] * images, *[7] * text_tokens]
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(images, 3, 32, 32, generator=generator)}


def prompted_inputs(text_tokens: int, queries: int, images: int = 1, side: int = 64) -> dict[str, Tensor]:
    """Return the same with placeholders and the detector's images."""
    inputs = plain_inputs(text_tokens, queries, images)
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == FILLER_ID, VPP_ID)
    generator = torch.Generator().manual_seed(1)
    return inputs | {
        "input_ids": ids,
        "vpp_pixel_values": torch.randn(images, 3, side, side, generator=generator),
    }
