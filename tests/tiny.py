"""Tiny random hosts and processors, built from configurations: nothing is downloaded."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "where", "is", "the", "cup", "red", "."]


def tiny_llava(*, vocabulary: int = 32, tied: bool = False, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA of two layers; `vocabulary` rows of 13 words leave spare rows by default."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_id=4,
        tie_word_embeddings=tied,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None  # random models stop anywhere; tests want full answers
    model.generation_config.pad_token_id = 0
    return model


def tiny_processor() -> LlavaProcessor:
    """LLaVA's processor at 32 pixels, with a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_tokens(["<image>"], special_tokens=True)
    images = LlavaImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return LlavaProcessor(
        images, fast, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def tiny_config(**changes: Any) -> VPPConfig:
    """Both prompts at toy size: four queries from a detector of one layer."""
    parts: dict[str, Any] = {
        "global_vpp": GlobalVPPConfig(size=32, border=4),
        "local_vpp": LocalVPPConfig(
            num_queries=4,
            image_size=64,
            projector_size=16,
            generator_options={
                "backbone": "resnet10t",
                "width": 32,
                "heads": 4,
                "feedforward": 32,
                "encoder_layers": 1,
                "decoder_layers": 1,
            },
        ),
    }
    return VPPConfig(**{**parts, **changes})


def picture(seed: int = 0, size: tuple[int, int] = (40, 24)) -> Image.Image:
    """A picture of noise, width x height."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)
