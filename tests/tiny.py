"""Tiny random hosts and processors, built from configurations: nothing is downloaded. Imported as `tests.tiny`."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, VPPProcessor, attach_vpp, hookimpl
from vpp_plugins.testing import TINY_DETR, ToyGenerator

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "where", "is", "the", "cup", "red", "."]
FULL = len(WORDS)
"""A vocabulary without a spare row: it has to grow for the placeholder."""
TEXTS = ["the red cup", "USER: <image> where is the cup ASSISTANT:", "<image> red <image> cup"]
"""A text for no image, for one, and for two."""


def cached(cache: Any) -> dict[str, Any]:
    """A key-value cache under the name that this transformers gives it: `cache` since 5.24."""
    names = inspect.signature(LlavaForConditionalGeneration.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def tiny_llava(*, vocabulary: int = 32, tied: bool = False, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA of two layers; `vocabulary` rows of 13 words leave spare rows by default."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=24,
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
    """Both prompts at toy size, with the built-in detector: four queries from one layer."""
    local = LocalVPPConfig(num_queries=4, image_size=64, projector_size=16, generator_options=dict(TINY_DETR))
    return VPPConfig(**{"global_vpp": GlobalVPPConfig(size=32, border=4), "local_vpp": local, **changes})


class ToyPlugin:
    """A stranger's plugin that brings the generator "toy"; the fixture `toy` installs it."""

    @hookimpl
    def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
        return ToyGenerator(num_queries, **options) if name == "toy" else None


TOY_GLOBAL = GlobalVPPConfig(size=32, border=4)
TOY_LOCAL = LocalVPPConfig(num_queries=4, generator="toy", image_size=64, projector_size=16)


def toy_config(**changes: Any) -> VPPConfig:
    """Both prompts at toy size, with the toy generator."""
    return VPPConfig(**{"global_vpp": TOY_GLOBAL, "local_vpp": TOY_LOCAL, **changes})


def attached(
    model: nn.Module | None = None, config: VPPConfig | None = None, *, trained: bool = True
) -> tuple[Any, VPPProcessor]:
    """An attached host and its processor; said to be trained, so that it does not warn."""
    model = attach_vpp(tiny_llava() if model is None else model, config or toy_config())
    processor = VPPProcessor(tiny_processor(), model)
    model.vpp.trained = trained
    return model, processor


def inputs_for(
    processor: Any, images_per_text: Sequence[int], *, side: str = "left", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Inputs of a padded batch, with so many images, all different, in each text."""
    processor.tokenizer.padding_side = side
    seeds = iter(range(100))
    images = [[image(next(seeds)) for _ in range(count)] for count in images_per_text]
    inputs = processor(
        images=images if any(images_per_text) else None,
        text=[TEXTS[count] for count in images_per_text],
        return_tensors="pt",
        padding=True,
    )
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def image(seed: int = 0, size: tuple[int, int] = (40, 24)) -> Image.Image:
    """An image of noise, width x height."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)
