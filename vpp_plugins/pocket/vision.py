"""The pocket model's vision tower: EfficientNet-Lite0 as a drop-in for LLaVA's CLIP."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

BACKBONE = "efficientnet_lite0"
COARSE_CHANNELS, FINE_CHANNELS = 320, 112
TOKEN_WIDTH = COARSE_CHANNELS + 4 * FINE_CHANNELS
"""Channels of a token: the stride-32 cell and the four stride-16 cells that it covers."""


class PocketVisionConfig(PretrainedConfig):
    """Settings of the tower; `image_size` is a multiple of 32, a token covers 32 x 32 pixels."""

    model_type = "vpp_pocket_vision"

    def __init__(
        self, image_size: int = 320, patch_size: int = 32, hidden_size: int = TOKEN_WIDTH, **others: Any
    ) -> None:
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = 1
        super().__init__(**others)


class PocketVisionModel(PreTrainedModel):
    """EfficientNet-Lite0's last two feature maps as one grid of tokens, normalised, plus a learnable 2-D position.

    The backbone is frozen, batch norm included. A convolution tells no place: the position embedding alone does.
    """

    config_class = PocketVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vision"
    input_modalities = "image"

    def __init__(self, config: PocketVisionConfig) -> None:
        super().__init__(config)
        self.backbone = create_backbone()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.position = nn.Parameter(sine_positions(config.image_size // config.patch_size, config.hidden_size))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Keep what the constructors drew: the backbone is loaded, and the position starts as sines."""

    def train(self, mode: bool = True) -> "PocketVisionModel":
        """Switch modes; the backbone always stays in evaluation mode, its statistics are ImageNet's."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixel_values: Float[Tensor, "batch 3 height width"], **_: object) -> BaseModelOutputWithPooling:
        """Return the tokens as the last (and only) entry of `hidden_states`, which is where LLaVA looks."""
        tokens = self.embed(self.features(pixel_values))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))

    def features(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens 768"]:
        """Return the backbone's part, which never learns."""
        alone = pixel_values.is_cpu and not torch.compiler.is_compiling()
        # the maps of one image fit a CPU's caches, a batch's do not
        pixels = pixel_values.to(next(self.backbone.buffers()).dtype)
        images = pixels.split(1) if alone else [pixels]
        fine, coarse = (torch.cat(parts) for parts in zip(*map(self.backbone, images), strict=True))
        return merge_maps(fine, coarse)

    def embed(self, features: Float[Tensor, "batch tokens 768"]) -> Float[Tensor, "batch tokens 768"]:
        """Return the trainable part's result: normalised features plus position."""
        return self.norm(features) + self.position


def create_backbone() -> nn.Module:
    """Return an untrained EfficientNet-Lite0 that maps pixels to its stride-16 and stride-32 maps, frozen for good."""
    return make_constant(create_trainable_backbone())


def create_trainable_backbone() -> nn.Module:
    """Return the same with parameters, and so with a state dict in the order of the published one."""
    import timm

    return timm.create_model(BACKBONE, pretrained=False, features_only=True, out_indices=(3, 4)).eval()


def make_constant(module: nn.Module) -> nn.Module:
    """Turn all parameters into buffers of the same names: no optimizer finds them, and state dicts stay as they are.

    Parameters that merely ask for no gradient ask for one again once `from_pretrained` has loaded them.
    """
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach())
    return module


def merge_maps(
    fine: Float[Tensor, "batch 112 fine_rows fine_columns"], coarse: Float[Tensor, "batch 320 rows columns"]
) -> Float[Tensor, "batch tokens 768"]:
    """Return one token per stride-32 cell, row by row: its own channels, then those of its four stride-16 cells."""
    quads = rearrange(fine, "b c (h two_h) (w two_w) -> b (h w) (two_h two_w c)", two_h=2, two_w=2)
    return torch.cat([rearrange(coarse, "b c h w -> b (h w) c"), quads], dim=-1)


def sine_positions(side: int, width: int) -> Float[Tensor, "tokens width"]:
    """Return sines and cosines of a cell's centre, half the channels for its row and half for its column."""
    centres = (torch.arange(side) + 0.5) / side
    frequencies = torch.pi * torch.logspace(-1, 4, width // 4, base=2)
    waves = centres[:, None] * frequencies
    axis = torch.cat([waves.sin(), waves.cos()], dim=-1)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None].expand(side, side, -1)
    return rearrange(torch.cat([rows, columns], dim=-1), "h w c -> (h w) c").contiguous()


def register_pocket() -> None:
    """Tell transformers' Auto classes about the tower; call it before building or loading a pocket model."""
    AutoConfig.register(PocketVisionConfig.model_type, PocketVisionConfig, exist_ok=True)
    AutoModel.register(PocketVisionConfig, PocketVisionModel, exist_ok=True)
