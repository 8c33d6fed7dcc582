"""The local prompt's detector against the same weights elsewhere."""

import copy
import statistics
import sys
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrModel

from benchmarks.floor import arithmetic, best_rate
from benchmarks.rows import Row, check_same, interleaved, median_row, ratios
from vpp_plugins.data.scenes import load_real_photos
from vpp_plugins.images import letterbox
from vpp_plugins.prompts.generators import DETR, MultiheadAttention, build_detr, load_detr_weights
from vpp_plugins.prompts.generators.cpu import fold_resnet

SIDE = 640
TOLERANCE = 1e-4
FLOOR_NOTE = (
    "{ours:.0f} ms. All operations of the direct algorithm take {direct:.0f} ms at the best speed of this processor, "
    "{winograd:.0f} ms with Winograd's way for the 3 x 3 convolutions that suit it: {most:.2f} times as fast as "
    "DetrModel's {theirs:.0f} ms, if nothing else took any time."
)


def rows(rounds: int = 8, rounds_of_four: int = 4) -> list[Row]:
    """Return the rows against DetrModel and a plain DETR, what makes it quick, and what packing saves on photos."""
    theirs, plain, ours = _same_weights()
    half = copy.deepcopy(ours).bfloat16() if _has_bfloat16() else None
    found = []
    for images, times_round in ((1, rounds), (4, rounds_of_four)):
        pixels = torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(images))
        variants: dict[str, Callable[[], Tensor]] = {
            "DetrModel": lambda pixels=pixels: theirs(pixels).last_hidden_state,
            "a plain DETR": lambda pixels=pixels: plain(pixels),
            "ours": lambda pixels=pixels: ours(pixels),
        }
        if half is not None:
            variants["bfloat16"] = lambda pixels=pixels: half(pixels)
        _check_equal(variants)
        times = interleaved(variants, rounds=times_round, warm_up=1)
        note = _floor_note(images, times["DetrModel"], times["ours"], torch.float32)
        label = f"local prompt, {images} image{'s' if images > 1 else ''}"
        for other in ("DetrModel", "a plain DETR"):
            name, samples = f"{label}, float32, speed against {other}", ratios(times[other], times["ours"])
            found.append(median_row(name, samples, unit="x", bar=2.0, better="more", note=note))
        name = f"{label}, bfloat16, speed against DetrModel in float32"
        if half is None:
            note = "this processor has no bfloat16 arithmetic"
            found.append(Row(name=name, value=None, unit="x", bar=3.5, better="more", note=note))
        else:
            samples = ratios(times["DetrModel"], times["bfloat16"])
            note = _floor_note(images, times["DetrModel"], times["bfloat16"], torch.bfloat16)
            found.append(median_row(name, samples, unit="x", bar=3.5, better="more", note=note))
    return [*found, *folding_rows(ours, rounds), packing_row(ours)]


def folding_rows(detr: DETR, rounds: int) -> list[Row]:
    """Return how much quicker the backbone is for one image, step by step, than the module itself."""
    body = detr.backbone.body
    folded, whole = fold_resnet(body), fold_resnet(body)
    assert folded is not None
    assert whole is not None
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def without_winograd() -> Tensor:
        with mock.patch("vpp_plugins.prompts.generators.cpu.WINOGRAD_CHANNELS", sys.maxsize):
            return folded(pixels)

    steps = {"folded": without_winograd, "folded, with Winograd's way": lambda: whole(pixels)}
    times = interleaved({"module": lambda: body(pixels)[-1], **steps}, rounds=rounds, warm_up=1)
    milliseconds = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    return [
        median_row(
            f"backbone, 1 image, float32, {step}, speed against the module",
            ratios(times["module"], times[step]),
            unit="x",
            better="more",
            note=f"{milliseconds[step]:.0f} ms, the module {milliseconds['module']:.0f} ms",
        )
        for step in steps
    ]


def packing_row(detr: DETR, rounds: int = 15) -> Row:
    """Return the time of encoder and decoder on packed photos, as a part of that on padded and masked ones."""
    photos = load_real_photos()
    pixels = torch.stack([letterbox(photo.image, SIDE) for photo in photos])
    masks = (pixels != 0).any(1)
    batch = masks[:4]
    channels = detr.input_proj.in_channels
    features = torch.randn(4, channels, SIDE // 32, SIDE // 32, generator=torch.Generator().manual_seed(0))

    def padded() -> Tensor:
        with mock.patch("vpp_plugins.prompts.generators.detr.ragged_pays", return_value=False):
            return detr.queries(features, batch)

    times = interleaved({"packed": lambda: detr.queries(features, batch), "padded": padded}, rounds=rounds)
    content = float(masks[:, ::32, ::32].float().mean())
    return median_row(
        "encoder and decoder, photos packed against padded",
        ratios(times["packed"], times["padded"]),
        unit="x",
        note=f"{len(photos)} photos, letterboxed: {content:.0%} of their tokens are image; timed on the first 4.",
    )


def _same_weights() -> tuple[DetrModel, DETR, DETR]:
    """Return transformers' DETR, one as DETR's authors wrote it, and ours, with the same random weights."""
    torch.manual_seed(0)
    backbone = {"model_type": "timm_backbone", "backbone": "resnet101", "features_only": True, "out_indices": [4]}
    theirs = DetrModel(DetrConfig(backbone_config=backbone)).eval()
    ours = build_detr().eval()
    load_detr_weights(ours, theirs.state_dict())
    return theirs, _plain_detr(ours), ours


def _plain_detr(detr: DETR) -> DETR:
    """Return a DETR on torchvision's ResNet and frozen norms, with torch's own attention modules."""
    from torchvision.models import resnet101
    from torchvision.ops import FrozenBatchNorm2d

    plain = copy.deepcopy(detr)
    body = resnet101(norm_layer=FrozenBatchNorm2d)
    stages = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    features = nn.Sequential()
    for name in stages:
        features.add_module(name, body.get_submodule(name))
    features.load_state_dict(detr.backbone.body.state_dict())
    plain.backbone = features.eval()
    return with_torchs_attention(plain)


def with_torchs_attention(detr: DETR) -> DETR:
    """Return a copy with torch's own attention modules on the same weights."""
    plain = copy.deepcopy(detr)
    for name, module in list(plain.named_modules()):
        if isinstance(module, MultiheadAttention):
            plain.set_submodule(name, _TorchAttention(module))
    return plain


class _TorchAttention(nn.Module):
    """torch's attention, called as DETR's authors call it; without the weights, which is quicker."""

    def __init__(self, ours: MultiheadAttention) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(ours.out_proj.in_features, ours.heads, batch_first=True).eval()
        self.attention.load_state_dict(ours.state_dict())

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, lengths: None = None
    ) -> Tensor:
        """Attend to padded images alone: for packed ones, which have `lengths`, torch's has no way."""
        ignored = None if mask is None else ~mask
        attended: Tensor = self.attention(query, key, value, key_padding_mask=ignored, need_weights=False)[0]
        return attended


def _check_equal(variants: dict[str, Callable[[], Tensor]]) -> None:
    """Raise ValueError unless all give DetrModel's queries."""
    with torch.no_grad():
        expected = variants["DetrModel"]()
        for name, run in variants.items():
            check_same(name, run(), expected, 0.05 if name == "bfloat16" else TOLERANCE)


def _floor_note(images: int, theirs: list[float], ours: list[float], dtype: torch.dtype) -> str:
    work, rate = arithmetic(SIDE, images, 100), best_rate(dtype) / 1000
    direct, winograd = work["gflop"] / rate, work["gflop_winograd"] / rate
    they, we = (1000 * statistics.median(seconds) for seconds in (theirs, ours))
    return FLOOR_NOTE.format(ours=we, direct=direct, winograd=winograd, theirs=they, most=they / winograd)


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
