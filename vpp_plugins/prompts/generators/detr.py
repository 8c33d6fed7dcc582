"""DETR as a generator of object queries (Carion et al., 2020; VPP-LLaVA, arXiv 2503.15426, section III-C)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.attention import ragged_pays
from vpp_plugins.prompts.generators.backbone import TimmBackbone
from vpp_plugins.prompts.generators.detr_transformer import (
    DecoderLayer,
    EncoderLayer,
    full_sine_encoding,
    sine_encoding,
)


class DETR(nn.Module):
    """A backbone and a transformer that turn an image into `num_queries` object queries of size `width`.

    `backbone` maps `[images, 3, height, width]` to one feature map with `channels` channels. `width` is a multiple of
    `heads` and, for the position encoding, of 4.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        *,
        num_queries: int = 100,
        width: int = 256,
        heads: int = 8,
        feedforward: int = 2048,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise VPPError(
                f"the width of a DETR must be a multiple of heads and of 4; got width {width}, heads {heads}."
            )
        if decoder_layers < 1:
            raise VPPError(f"a DETR needs at least one decoder layer to make queries; got {decoder_layers}.")
        self.num_queries = num_queries
        self.width = width
        self.backbone = backbone
        self.input_proj = nn.Conv2d(channels, width, kernel_size=1)
        sizes = (width, heads, feedforward)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes, dropout=dropout) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes, dropout=dropout) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.query_embed = nn.Embedding(num_queries, width)

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"],
        pixel_mask: Bool[Tensor, "images height width"] | None = None,
    ) -> Float[Tensor, "images {self.num_queries} {self.width}"]:
        """Return the object queries of ImageNet-normalised images whose sides are multiples of 32.

        `pixel_mask` is True on image and False on padding, which then takes no part. Without it everything is
        image, as in VPP-LLaVA.
        """
        return self.queries(self.features(pixel_values), pixel_mask)

    def features(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images channels rows columns"]:
        """Return the backbone's feature map: the costly part, to be cached where images come again."""
        height, width = pixel_values.shape[-2:]
        if height % 32 or width % 32:
            raise VPPError(
                f"the sides of DETR's images must be multiples of 32; got {height} x {width}. Pad or resize."
            )
        return self.backbone(pixel_values.to(self.input_proj.weight.dtype))

    def queries(
        self,
        features: Float[Tensor, "images channels rows columns"],
        mask: Bool[Tensor, "images height width"] | None = None,
        *,
        intermediate: bool = False,
    ) -> Float[Tensor, "*layers images {self.num_queries} {self.width}"]:
        """Return the object queries of a feature map; `mask` as in `forward`, of the images or of the feature map.

        With `intermediate` there is a leading axis over the decoder's layers, the last of which is the usual result:
        auxiliary detection losses need them all.
        """
        mask = None if mask is None else _shrink(mask, features)
        position = self._position(features, mask)
        tokens = self.input_proj(features).flatten(2).transpose(1, 2).contiguous()
        if mask is None:
            seen = _Seen(tokens, position)
        elif ragged_pays(tokens):
            seen = _pack(tokens, position, mask.flatten(1))
        else:
            seen = _Seen(tokens, position, mask=mask.flatten(1))
        layers = self._decode(self._encode(seen), features.shape[0], every_layer=intermediate)
        return torch.stack(layers) if intermediate else layers[-1]

    def _position(self, features: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            return sine_encoding(mask, self.width).to(features.dtype)
        rows, columns = features.shape[-2:]
        return full_sine_encoding(rows, columns, self.width, device=features.device, dtype=features.dtype)

    def _encode(self, seen: "_Seen") -> "_Seen":
        for layer in self.encoder:
            seen = seen._replace(tokens=layer(*seen))
        return seen

    def _decode(self, memory: "_Seen", images: int, *, every_layer: bool) -> list[Tensor]:
        tokens, position, mask, lengths = memory
        queries = tokens.new_zeros(images, self.num_queries, self.width)
        query_position = self.query_embed.weight
        placed_tokens = tokens + position
        normalised = []
        for number, layer in enumerate(self.decoder, start=1):
            queries = layer(queries, query_position, tokens, placed_tokens, mask, lengths)
            if every_layer or number == len(self.decoder):
                normalised.append(self.decoder_norm(queries))
        return normalised


def build_detr(
    *,
    backbone: str = "resnet101",
    num_queries: int = 100,
    width: int = 256,
    heads: int = 8,
    feedforward: int = 2048,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    dropout: float = 0.1,
    dilation: bool = False,
    fold: bool = True,
) -> DETR:
    """Build a DETR at random weights on a timm backbone; the defaults are those of VPP-LLaVA.

    timm's ResNets have the stride on the 3x3 convolution, as the published weights need. With `dilation` the last stage
    has none: four times as many features, at 253 instead of 152 GFLOPs (DETR's paper, ResNet-101). Weights called DC5
    were trained so. The reference loads such weights into a net without dilation, which all shapes fit, and trains on.
    Off by default: it is cheaper, and VPP-LLaVA's weights need it off. Weights that are DC5 and used as they are need
    it on. `fold` is TimmBackbone's: quicker inference on the CPU for more memory.

    Raises VPPError for a backbone that timm does not know.
    """
    body = TimmBackbone(backbone, fold=fold, **({"output_stride": 16} if dilation else {}))
    return DETR(
        body,
        body.channels,
        num_queries=num_queries,
        width=width,
        heads=heads,
        feedforward=feedforward,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        dropout=dropout,
    )


def _shrink(mask: Bool[Tensor, "images height width"], features: Tensor) -> Bool[Tensor, "images rows columns"]:
    """Return the mask at the size of the feature map, nearest, as DETR does."""
    return F.interpolate(mask[:, None].float(), size=features.shape[-2:])[:, 0].bool()


class _Seen(NamedTuple):
    """The images' tokens: padded, with a mask of the padding, or packed into one row, with the length of each."""

    tokens: Float[Tensor, "rows tokens width"]
    position: Float[Tensor, "#rows tokens width"]
    mask: Bool[Tensor, "images tokens"] | None = None
    lengths: list[int] | None = None


def _pack(
    tokens: Float[Tensor, "images tokens width"],
    position: Float[Tensor, "images tokens width"],
    mask: Bool[Tensor, "images tokens"],
) -> _Seen:
    """Return the tokens that are image one after the other, so that no layer computes padding."""
    lengths = mask.sum(1).tolist()
    if sum(lengths) == mask.numel():
        return _Seen(tokens, position)
    return _Seen(tokens[mask][None], position[mask][None], lengths=lengths)
