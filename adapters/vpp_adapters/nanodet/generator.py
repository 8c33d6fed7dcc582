"""A frozen NanoDet's best places as the local prompt's queries."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vpp_adapters.nanodet.network import CHANNELS, CLASSES, STRIDES, NanoDet, NanoDetOutput, boxes_xyxy, places
from vpp_plugins import VPPError, hookimpl

WEIGHTS = Path(__file__).with_name("weights") / "nanodet.safetensors"
SHA256 = "824fe9a6298487f3fc9f30595c64d536f2ebbfb83cc516eb253789c27574ae0d"
"""Of the weights; `convert` makes the file again, to the byte."""

NAMES = tuple(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush".split(", ")
)
"""COCO's classes, in the order of the scores."""

SIDE = 416  # pixels that the detector was trained at
MOST_OVERLAP = 0.6  # intersection over union of two places that are kept, whatever their classes
CANDIDATES = 1000  # best places that overlaps are looked at of
SCORE_MEAN, SCORE_STD = -4.5, 1.2  # about, of a kept place's log scores: brings them to the size of the other numbers
CELLS = 128  # cells of the input's side in which a box is written, see `box_code`
BANDS = (4.0, 14.0)  # standard deviations of the two bands of the box code's frequencies, half turns over the input
FREQUENCIES_PER_BAND = 32

PARTS: Mapping[str, int] = {
    "features": (1 + len(STRIDES)) * CHANNELS,
    "scores": CLASSES,
    "box": 4 * (2 + 2 * len(BANDS) * FREQUENCIES_PER_BAND),
    "found": 1,
}
"""How many numbers of a query are what, in order."""


class NanoDetQueries(nn.Module):
    """Maps images to the `num_queries` best places of NanoDet, best first, each as 1,113 numbers.

        512   features: the place's own, and the averages over its box (RoIAlign) of the maps at strides 8, 16 and 32;
              each of the four is standardised over its 128 numbers
        80    scores: (log - SCORE_MEAN) / SCORE_STD of COCO's class scores; `scores` reads them back
        520   box: see `box_code`; `boxes` reads it back
        1     found: 1, or 0 like all the rest where an image has fewer places than are asked for

    The weights are buffers, not parameters: they learn nothing in any recipe, stay float32 whatever the host's dtype,
    and are in no state dict, so that saved prompts only name their hash. No gradient reaches the images either.
    Every image is looked at by itself, so that its queries are the same, to the bit, in any batch.
    """

    width = sum(PARTS.values())
    names = NAMES
    box_code = slice(PARTS["features"] + PARTS["scores"] + 8, PARTS["features"] + PARTS["scores"] + PARTS["box"])
    """Which numbers of a query are its box's waves: see `box_code` of this file."""

    def __init__(self, network: NanoDet, *, num_queries: int, pretrained: bool) -> None:
        super().__init__()
        self.num_queries, self.pretrained = num_queries, pretrained
        self.frozen_weights: dict[str, str] = {WEIGHTS.name: SHA256} if pretrained else {}
        self.network = network
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach(), persistent=not pretrained)

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"],
        pixel_mask: Bool[Tensor, "images height width"] | None = None,
    ) -> Float[Tensor, "images {self.num_queries} {self.width}"]:
        """Return the queries; pixels are ImageNet-normalised RGB. Where the mask is False nothing is looked for."""
        queries = pixel_values.new_zeros(len(pixel_values), self.num_queries, self.width)
        with torch.autocast(pixel_values.device.type, enabled=False):
            for index, pixels in enumerate(pixel_values.float()):
                found = self._look(pixels, None if pixel_mask is None else pixel_mask[index])
                queries[index, : len(found)] = found.to(queries)
        return queries

    def boxes(self, queries: Float[Tensor, "images queries width"]) -> Float[Tensor, "images queries 4"]:
        """Return where queries look: xyxy in fractions of the generator's input, padding included."""
        return box_of_code(_part(queries, "box"))

    def scores(self, queries: Float[Tensor, "images queries width"]) -> Float[Tensor, "images queries classes"]:
        """Return the class scores, 0 to 1, each by itself, in the order of `names`."""
        return (_part(queries, "scores") * SCORE_STD + SCORE_MEAN).exp() * _part(queries, "found")

    def _look(
        self, pixels: Float[Tensor, "3 height width"], mask: Bool[Tensor, "height width"] | None
    ) -> Float[Tensor, "found {self.width}"]:
        pixels, mask = _prepared(pixels, mask)
        size_hw = (pixels.shape[-2], pixels.shape[-1])
        output = self.network(pixels)
        boxes = boxes_xyxy(output.bins, size_hw)[0]
        centres, _ = places(size_hw, boxes.device)
        if mask is None:
            on_image = torch.ones_like(centres[:, 0], dtype=torch.bool)
        else:
            on_image, boxes = mask[centres[:, 1].long(), centres[:, 0].long()], _clamped(boxes, mask)
        best = _best(output.logits[0].amax(-1), boxes, on_image)[: self.num_queries]
        scores = (F.logsigmoid(output.logits[0, best]) - SCORE_MEAN) / SCORE_STD
        code = box_code(boxes[best] / boxes.new_tensor([*size_hw[::-1], *size_hw[::-1]]))
        return torch.cat([_features(output, boxes, best), scores, code, torch.ones_like(code[:, :1])], dim=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, but never cast: as whole numbers, the weights are left alone by a change of dtype."""

        def moved(tensor: Tensor) -> Tensor:
            return fn(tensor.view(torch.int32)).view(torch.float32)

        was_meta = self._is_meta()
        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self._is_meta() and self.pretrained:  # to_empty gave them memory
            _load(self.network)
        return self

    def _is_meta(self) -> bool:
        return any(buffer.is_meta for buffer in self.buffers())


def build_nanodet(*, num_queries: int, pretrained: bool = True) -> NanoDetQueries:
    """Build the generator; `pretrained=False` gives the same network at random weights, frozen too, as a control.

    Raises VPPError where the weights that the package ships are missing or others.
    """
    if not pretrained:
        return NanoDetQueries(_randomised(NanoDet()), num_queries=num_queries, pretrained=False)
    with torch.device("meta"):  # no random start, which would touch the global random state
        network = NanoDet()
    generator = NanoDetQueries(network, num_queries=num_queries, pretrained=True)
    device = torch.get_default_device()
    return generator if device.type == "meta" else generator.to_empty(device=device)


@hookimpl
def vpp_generator_names() -> Sequence[str]:
    """Return the one name."""
    return ("nanodet",)


@hookimpl
def vpp_generator(name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
    """Build the generator "nanodet"; its one option is `pretrained`."""
    if name != "nanodet":
        return None
    unknown = sorted(options.keys() - {"pretrained"})
    if unknown or not isinstance(options.get("pretrained", True), bool):
        given = f"'{unknown[0]}'" if unknown else f"pretrained={options['pretrained']!r}"
        raise VPPError(
            f"local_vpp.generator_options: 'nanodet' takes pretrained alone, true or false, but got {given}."
        )
    return build_nanodet(num_queries=num_queries, **options)


def read_weights(path: Path = WEIGHTS) -> dict[str, Tensor]:
    """Return the shipped weights by layer, float32, on the CPU; raises VPPError for any other file."""
    from safetensors.torch import load

    content = path.read_bytes() if path.is_file() else b""
    if sha256(content).hexdigest() != SHA256:
        was = "are not NanoDet's (their SHA-256 is another)" if content else "are missing"
        raise VPPError(
            f"the weights '{path}' {was}: install vpp-plugins again, or make them with "
            "`python -m vpp_adapters.nanodet.convert`."
        )
    with torch.device("cpu"):
        return {name: tensor.float() for name, tensor in load(content).items()}


def box_code(boxes_xyxy: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 520"]:
    """Write boxes, in fractions of the input, as numbers that a linear layer can tell apart finely.

    Each corner b comes as its cell, round(128 b) / 128, and as what is left of it times 128, both exact enough even in
    bfloat16; and as sin and cos of pi f b, where f has two bands, normally distributed: one alone blurs.
    """
    cells = (boxes_xyxy * CELLS).round()
    turns = torch.pi * boxes_xyxy[..., None] * frequencies().to(boxes_xyxy)
    waves = torch.cat([turns.sin(), turns.cos()], dim=-1)
    return torch.cat([cells / CELLS, boxes_xyxy * CELLS - cells, waves.flatten(-2)], dim=-1)


def box_of_code(code: Float[Tensor, "*batch 520"]) -> Float[Tensor, "*batch 4"]:
    """Return the boxes that `box_code` wrote."""
    cells, left = code[..., :4].float(), code[..., 4:8].float()
    return cells + left / CELLS


def frequencies() -> Float[Tensor, " frequencies"]:
    """Return the box code's frequencies: of each band, evenly spaced quantiles of |N(0, sigma)|."""
    shares = (torch.arange(FREQUENCIES_PER_BAND, dtype=torch.float64) + 0.5) / FREQUENCIES_PER_BAND
    normal = torch.erfinv(shares) * 2**0.5
    return torch.cat([sigma * normal for sigma in BANDS])


def _prepared(
    pixels: Float[Tensor, "3 height width"], mask: Bool[Tensor, "height width"] | None
) -> tuple[Float[Tensor, "1 3 rows columns"], Bool[Tensor, "rows columns"] | None]:
    """Return the image as NanoDet takes it: BGR, its longer side 416 pixels, padding grey as letterboxing leaves it.

    Its mean and standard deviation are ImageNet's, in BGR and times 255, so the numbers themselves stay.
    """
    height, width = pixels.shape[-2:]
    rows, columns = (max(32, round(side * SIDE / max(height, width) / 32) * 32) for side in (height, width))
    pixels = pixels.flip(0)[None]
    if (rows, columns) != (height, width):
        pixels = F.interpolate(pixels, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
        mask = mask if mask is None else F.interpolate(mask[None, None].float(), (rows, columns))[0, 0] > 0
    if mask is None:
        return pixels, None
    return pixels * mask, mask


def _clamped(boxes_xyxy: Float[Tensor, "places 4"], mask: Bool[Tensor, "rows columns"]) -> Float[Tensor, "places 4"]:
    """Return the boxes without what they have of the padding; the image lies in one piece."""
    (top, bottom), (left, right) = (_span(mask.any(dim)) for dim in (1, 0))
    low, high = boxes_xyxy.new_tensor([left, top, left, top]), boxes_xyxy.new_tensor([right, bottom, right, bottom])
    return boxes_xyxy.maximum(low).minimum(high)


def _span(inside: Bool[Tensor, " length"]) -> tuple[int, int]:
    """Return the first pixel of the image and the one after its last."""
    found = inside.nonzero()
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, len(inside))


def _best(
    scores: Float[Tensor, " places"], boxes_xyxy: Float[Tensor, "places 4"], wanted: Bool[Tensor, " places"]
) -> Int64[Tensor, " kept"]:
    """Return the places that are left when each has taken away the worse ones that overlap it, best first."""
    from torchvision.ops import nms

    order = scores.argsort(descending=True, stable=True)
    order = order[wanted[order]][:CANDIDATES]
    return order[nms(boxes_xyxy[order], scores[order], MOST_OVERLAP)]


def _features(
    output: NanoDetOutput, boxes_xyxy: Float[Tensor, "places 4"], chosen: Int64[Tensor, " kept"]
) -> Float[Tensor, "kept 512"]:
    """Return what is at the chosen places and, averaged over three by three cells, in their boxes."""
    from torchvision.ops import roi_align

    own = torch.cat([level[0].flatten(1).T for level in output.pyramid])[chosen]
    pooled = [
        roi_align(level, [boxes_xyxy[chosen]], 3, spatial_scale=1 / stride, sampling_ratio=2, aligned=True)
        for level, stride in zip(output.pyramid, STRIDES, strict=True)
    ]
    blocks = torch.stack([own, *(cells.mean((2, 3)) for cells in pooled)], dim=1)
    return F.layer_norm(blocks, (CHANNELS,)).flatten(1)


def _part(queries: Float[Tensor, "*batch width"], name: str) -> Float[Tensor, "*batch part"]:
    """Return one part of queries, float32."""
    parts: dict[str, Tensor] = dict(zip(PARTS, queries.float().split(list(PARTS.values()), dim=-1), strict=True))
    return parts[name]


def _load(network: NanoDet) -> None:
    weights = read_weights()
    for name, buffer in network.named_buffers():
        buffer.copy_(weights[name])


def _randomised(network: NanoDet) -> NanoDet:
    """Give the network random weights that keep an image's numbers at their size, as for training."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, a=0.1, nonlinearity="leaky_relu")
            nn.init.zeros_(module.bias)
    return network
