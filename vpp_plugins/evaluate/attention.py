"""What a model attends to as it writes a box: the local prompt's queries, and the image's own tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from vpp_plugins.attach import active_vpp, unwrap, vocabulary
from vpp_plugins.boxes import Box, box_iou, frame_rectangle
from vpp_plugins.ground import Grounder
from vpp_plugins.images import draw_boxes
from vpp_plugins.plugins import BoxedQueries

QUERY, CHOSEN = "#11807d", "#e5178f"
"""Colours of the queries' boxes, and of the one that is nearest to the answer."""
SURE = 0.3
"""From this score on, 0 to 1, a query's class stands on its box."""
NOTED = 0.05
"""From this share of the attention on, 0 to 1, a query's box is drawn with it."""


@dataclass(frozen=True)
class Attention:
    """The last layer's attention as an answer was written, the mean of its heads.

    It is the mean of all places at which a number comes next, or of the whole answer where there is no number. A number
    that ends an answer, where no bracket or end of text follows, is not among them.
    """

    image: Image.Image
    on_image: Float[Tensor, " tokens"]
    """Share of each of the image's own tokens."""
    on_queries: Float[Tensor, " queries"]
    """Share of each query of the local prompt; empty without one."""
    boxes_xyxy_px: tuple[Box, ...] = ()
    """Where the queries look, in pixels of the image; empty where their generator does not say so."""
    labels: tuple[str, ...] = ()
    """Name and score of each query's best class, or empty where it is unsure."""

    def nearest(self, box: Box) -> int | None:
        """Return the query whose box has the largest intersection over union with `box`, or None where none meets it.

        `box` is xyxy in pixels of the image.
        """
        overlaps = [box_iou(own, box) for own in self.boxes_xyxy_px]
        return overlaps.index(max(overlaps)) if any(overlaps) else None

    def draw_queries(self, chosen: int | None = None) -> Image.Image:
        """Return the image with thin boxes where the queries look, and a thick one for the chosen."""
        drawn = self._boxes(self.image, [n for n in range(len(self.boxes_xyxy_px)) if n != chosen], self.labels)
        if chosen is None:
            return drawn
        return draw_boxes(drawn, [self.boxes_xyxy_px[chosen]], labels=[self.labels[chosen]], colours=[CHOSEN])

    def draw(self, chosen: int | None = None) -> Image.Image:
        """Return the image with the share of each query that is attended to, and bright where its own tokens are.

        Its tokens' part is left out unless they are a square grid over the padded square, as LLaVA's are.
        """
        side = isqrt(len(self.on_image))
        lit = self._lit(self.on_image.reshape(side, side)) if side and side**2 == len(self.on_image) else self.image
        shares = [f"{share:.0%}" for share in self.on_queries.tolist()]
        noted = [n for n in range(len(self.boxes_xyxy_px)) if self.on_queries[n] >= NOTED]
        return self._boxes(lit, noted, shares, chosen)

    def _boxes(
        self, image: Image.Image, numbers: Sequence[int], labels: Sequence[str], chosen: int | None = None
    ) -> Image.Image:
        return draw_boxes(
            image,
            [self.boxes_xyxy_px[n] for n in numbers],
            labels=[labels[n] for n in numbers],
            colours=[CHOSEN if n == chosen else QUERY for n in numbers] or [QUERY],
            thin=True,
        )

    def _lit(self, grid: Float[Tensor, "side side"]) -> Image.Image:
        """Return the image at the brightness of a grid over its padded square; 15 % is left where it is 0."""
        left, top, side, _ = frame_rectangle("square", (self.image.height, self.image.width))
        light = F.interpolate(grid[None, None], (side, side), mode="bilinear")[0, 0]
        light = light[-top : self.image.height - top, -left : self.image.width - left]
        shown = np.asarray(self.image.convert("RGB")) * (0.15 + 0.85 * light / light.max()).numpy()[..., None]
        return Image.fromarray(shown.round().astype(np.uint8))


def attend(grounder: Grounder, image: Image.Image, expression: str) -> Attention:
    """Ask an attached model, with eager attention, and return what it attended to. The model is left as it was."""
    host: Any = unwrap(grounder.model)
    vpp = active_vpp(host)
    with _watched(host) as seen:
        grounder(image, expression)
    prompt, *answer = seen.ids
    words = grounder.processor.tokenizer.convert_ids_to_tokens([int(ids[-1]) for ids in answer])
    numbers = [row for row, word in zip(seen.rows, words, strict=False) if any(sign.isdigit() for sign in word)]
    shares = torch.stack([row[: len(prompt)] for row in numbers or seen.rows]).mean(0)
    tokens = vocabulary.image_token_id(host), vpp.token_id
    on_image, on_queries = (shares[prompt == (-1 if token is None else token)] for token in tokens)
    generator = None if vpp.local_vpp is None else vpp.local_vpp.generator
    if not isinstance(generator, BoxedQueries):
        return Attention(image, on_image, on_queries)
    queries = seen.queries[0]
    boxes = _in_pixels(generator.boxes(queries)[0], image)
    return Attention(image, on_image, on_queries, boxes, _labels(generator, queries))


@dataclass(frozen=True)
class _Seen:
    """What passed as one image was asked about: each step's new tokens, its last place's attention, the queries."""

    ids: list[Int64[Tensor, " new"]] = field(default_factory=list)
    rows: list[Float[Tensor, " length"]] = field(default_factory=list)
    queries: list[Float[Tensor, "1 queries width"]] = field(default_factory=list)


@contextmanager
def _watched(host: Any) -> Iterator[_Seen]:
    """Have the language model compute attention eagerly, which returns it, and keep what passes; then as before."""
    seen, decoder, local = _Seen(), host.get_decoder(), active_vpp(host).local_vpp
    before = decoder.config._attn_implementation
    handles = [
        host.register_forward_pre_hook(lambda *call: seen.ids.append(call[-1]["input_ids"][0]), with_kwargs=True),
        decoder.layers[-1].self_attn.register_forward_hook(
            lambda *call: seen.rows.append(call[-1][1][0, :, -1].float().mean(0))
        ),
    ]
    if local is not None:
        handles.append(local.generator.register_forward_hook(lambda *call: seen.queries.append(call[-1])))
    try:
        decoder.set_attn_implementation("eager")
        yield seen
    finally:
        decoder.set_attn_implementation(before)
        for handle in handles:
            handle.remove()


def _in_pixels(boxes: Float[Tensor, "queries 4"], image: Image.Image) -> tuple[Box, ...]:
    """Bring boxes from fractions of the padded square into the image; what lies outside is cut off."""
    left, top, side, _ = frame_rectangle("square", (image.height, image.width))
    corner, most = boxes.new_tensor([left, top] * 2), boxes.new_tensor([image.width, image.height] * 2)
    placed = (boxes * side + corner).clamp(min=boxes.new_zeros(4), max=most)
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in placed.tolist())


def _labels(generator: BoxedQueries, queries: Float[Tensor, "1 queries width"]) -> tuple[str, ...]:
    if not generator.names:
        return ("",) * queries.shape[1]
    chances, classes = generator.scores(queries)[0].max(-1)
    sure = zip(chances.tolist(), classes.tolist(), strict=True)
    return tuple(f"{generator.names[number]} {chance:.0%}" if chance >= SURE else "" for chance, number in sure)
