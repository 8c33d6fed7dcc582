"""What answers can be bound to: the tokens of a batch that show its images, and where each of them looks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vpp_plugins.attach import active_vpp, host_state, to_windows, vocabulary
from vpp_plugins.boxes import BoxLike
from vpp_plugins.data import Describe, Locate, Sample
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import BoxedQueries
from vpp_plugins.train.collate import About
from vpp_plugins.train.detector import letterboxed
from vpp_plugins.train.labels import IGNORED
from vpp_plugins.train.losses.base import AuxiliaryLoss

FITS, NEARLY_BEST = 0.5, 0.1
"""A query fits a box from this intersection over union on, if it is at most so much below the best query's."""

Places = list[tuple[int, int]]
"""Places of a row whose next token belongs to a box, each with the number of the coordinate that it is, or -1."""


@dataclass(frozen=True)
class Evidence:
    """The tokens of each image, one row per image: queries that say where they look, else the image's own tokens."""

    rows: Int64[Tensor, " images"]
    """Rows of the batch."""
    columns: Int64[Tensor, "images places"]
    """Places in the sequence."""
    boxes_xyxy: Float[Tensor, "images places 4"]
    """In fractions of the frame: of a query its box, of an image's token the part of the image that it stands for."""
    square: bool
    """Whether the frame is the image padded to a square, or the image itself."""
    are_queries: bool

    def fitting(self, image: int, box_xyxy: Float[Tensor, "4"]) -> Bool[Tensor, " places"]:
        """Return which tokens show a box: the queries that fit it, or the image's tokens whose centre lies in it.

        No query may fit. Of the image's own tokens the one nearest to the box's centre always does.
        """
        boxes = self.boxes_xyxy[image]
        if self.are_queries:
            overlap = _iou(boxes, box_xyxy)
            return overlap >= max(FITS, float(overlap.max()) - NEARLY_BEST)
        inside = contains(box_xyxy, centres(boxes))
        if not inside.any():
            inside[(centres(boxes) - centres(box_xyxy)).square().sum(-1).argmin()] = True
        return inside


@dataclass(frozen=True)
class Spoken:
    """Where answers speak of one box: a place of the sequence whose next token belongs to it."""

    image: Int64[Tensor, " spoken"]
    """Index into the evidence's rows."""
    column: Int64[Tensor, " spoken"]
    coordinate: Int64[Tensor, " spoken"]
    """Which number of the box comes next, 0 to 3, where numbers are single tokens; -1 otherwise."""
    fits: Bool[Tensor, "spoken places"]
    """Which tokens of the evidence show the box."""

    def only(self, chosen: Bool[Tensor, " spoken"]) -> "Spoken":
        """Return some of them."""
        return Spoken(self.image[chosen], self.column[chosen], self.coordinate[chosen], self.fits[chosen])


class EvidenceLoss(AuxiliaryLoss):
    """A loss that binds answers to the tokens that show what they speak of; for models with any image tokens."""

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__(model)
        self.tokenizer = processor.tokenizer
        self.backbone = host_state(self.host).backbone
        self.image_id = vocabulary.image_token_id(self.host)
        self.generator = boxed_generator(self.host)
        if self.generator is not None:
            self.catch("queries", self.generator)
        elif self.image_id is None:
            raise VPPError(
                f"the loss '{self.name}' needs an image's own tokens in the text, or queries that say where they look, "
                f"but a '{self.host.config.model_type}' with this generator has neither: leave it out."
            )

    def evidence(self, about: About, inputs: Mapping[str, Any]) -> Evidence | None:
        """Return the evidence of the forward that just ran, or None where it had no image."""
        queries = self.caught.pop("queries", None)
        if not about.imaged:
            return None
        ids: Tensor = inputs["input_ids"]
        rows = torch.tensor(about.imaged_rows, device=ids.device)
        if self.generator is not None:
            columns = _columns(ids[rows], active_vpp(self.host).token_id or -1, self.name)
            boxes = self.generator.boxes(queries[: len(rows)].detach()).float()
            return Evidence(rows, columns, boxes, square=True, are_queries=True)
        columns = _columns(ids[rows], self.image_id or -1, self.name)
        boxes = self._parts(columns.shape[1], len(rows), inputs).to(ids.device)
        return Evidence(rows, columns, boxes, square=self.backbone.frame == "square", are_queries=False)

    def spoken(self, about: About, labels: Int64[Tensor, "batch length"], evidence: Evidence) -> Spoken:
        """Return where answers speak of one box, for turns that locate exactly one."""
        found: list[tuple[int, int, int]] = []
        fits: list[Tensor] = []
        for image, turn, places in self.located(about, labels):
            box = in_frame(turn.boxes, about.imaged[image], square=evidence.square)[0]
            fit = evidence.fitting(image, box.to(labels.device))
            if fit.any():
                found += [(image, column, number) for column, number in places]
                fits += [fit] * len(places)
        image, column, coordinate = torch.tensor(found, dtype=torch.long, device=labels.device).reshape(-1, 3).T
        empty = torch.zeros(0, evidence.columns.shape[1], dtype=torch.bool, device=labels.device)
        return Spoken(image, column, coordinate, torch.stack(fits) if fits else empty)

    def located(self, about: About, labels: Int64[Tensor, "batch length"]) -> Iterator[tuple[int, Locate, Places]]:
        """Yield, of turns that locate exactly one box, the image's number, the turn and where its answer speaks."""
        for image, (row, sample) in enumerate(zip(about.imaged_rows, about.imaged, strict=True)):
            for turn, (start, end) in zip(sample.turns, answers(labels[row]), strict=False):
                if isinstance(turn, Locate) and len(turn.boxes) == 1:
                    places = self._numbers(labels[row, start:end].tolist())
                    yield image, turn, [(start + place - 1, number) for place, number in places]

    def _numbers(self, answer: Sequence[int]) -> list[tuple[int, int]]:
        """Return the places of an answer's first token and of its digits, with the number that each is, or -1."""
        words = self.tokenizer.convert_ids_to_tokens(list(answer))
        digits = [place for place, word in enumerate(words) if any(sign.isdigit() for sign in word)]
        whole = len(digits) == 4
        return [(0, -1)] * (0 not in digits) + [(place, n if whole else -1) for n, place in enumerate(digits)]

    def _parts(self, tokens: int, images: int, inputs: Mapping[str, Any]) -> Float[Tensor, "images tokens 4"]:
        """Return the part of its image that each of an image's own tokens stands for."""
        grids = inputs.get("image_grid_thw")
        if grids is not None:
            merge = self.host.config.vision_config.to_dict().get("spatial_merge_size", 1)
            sides = [(int(rows) // merge, int(columns) // merge) for _, rows, columns in grids[:images].tolist()]
            return torch.stack([grid(*side) for side in sides])
        windows = [(0.0, 0.0, 1.0, 1.0)] * images
        if inputs.get("vpp_tile_boxes") is not None:
            windows = to_windows(inputs["vpp_tile_boxes"])
        each = len(windows) // images
        side = isqrt(tokens // max(each, 1))
        if each * images > len(windows) or side * side * each != tokens:
            raise VPPError(
                f"the loss '{self.name}' cannot tell what part of its image each of {tokens} tokens shows: leave it "
                "out for this host, or take a generator that says where its queries look, such as 'nanodet'."
            )
        cells = grid(side, side)
        laid = [torch.cat([_into(cells, w) for w in windows[n * each : (n + 1) * each]]) for n in range(images)]
        return torch.stack(laid)


def boxed_generator(host: Any) -> Any:
    """Return the local prompt's generator where it says where its queries look, or else None."""
    local = active_vpp(host).local_vpp
    return local.generator if local is not None and isinstance(local.generator, BoxedQueries) else None


def answers(labels: Int64[Tensor, " length"]) -> list[tuple[int, int]]:
    """Return where each answer starts and ends: runs of what is learned, one per turn."""
    learned = nn.functional.pad((labels != IGNORED).int(), (1, 1)).diff()
    starts, ends = (learned == 1).nonzero()[:, 0].tolist(), (learned == -1).nonzero()[:, 0].tolist()
    return list(zip(starts, ends, strict=True))


def in_frame(boxes_xyxy_px: Sequence[BoxLike], sample: Sample, *, square: bool) -> Float[Tensor, "boxes 4"]:
    """Return a sample's boxes in fractions of the image padded to a square, or of the image itself."""
    size_hw = sample.meta.size_hw
    if square:
        return letterboxed(list(boxes_xyxy_px), size_hw)
    return torch.tensor([list(map(float, box)) for box in boxes_xyxy_px]) / torch.tensor([*size_hw[::-1]] * 2)


def described_boxes(sample: Sample) -> list[BoxLike]:
    """Return the boxes of everything that a sample speaks of, each once."""
    boxes = [box for turn in sample.turns if isinstance(turn, Describe | Locate) for box in turn.boxes]
    return list(dict.fromkeys(tuple(map(float, box)) for box in boxes))


def centres(boxes_xyxy: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 2"]:
    """Return the middles of boxes."""
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2


def contains(box_xyxy: Float[Tensor, "4"], points: Float[Tensor, "points 2"]) -> Bool[Tensor, " points"]:
    """Return which points lie in a box."""
    return ((box_xyxy[..., :2] <= points) & (points <= box_xyxy[..., 2:])).all(-1)


def _columns(ids: Int64[Tensor, "images length"], token: int, loss: str) -> Int64[Tensor, "images places"]:
    """Return the places of one token in each row, which must be equally many."""
    counts = {int(count) for count in (ids == token).sum(1)}
    if len(counts) != 1 or counts == {0}:
        raise VPPError(
            f"the loss '{loss}' needs one image for each text and equally many tokens for each image, but a batch has "
            f"{sorted(counts)}: leave it out, or make the images of one size."
        )
    return (ids == token).nonzero()[:, 1].reshape(len(ids), -1)


def grid(rows: int, columns: int) -> Float[Tensor, "cells 4"]:
    """Return the cells of a grid over the whole frame, row by row."""
    top, left = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    cells = torch.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], dim=-1)
    return cells.reshape(-1, 4)


def _into(cells: Float[Tensor, "cells 4"], window: Sequence[float]) -> Float[Tensor, "cells 4"]:
    """Lay a grid over a window of the frame."""
    left, top, right, bottom = window
    return cells * torch.tensor([right - left, bottom - top] * 2) + torch.tensor([left, top] * 2)


def _iou(boxes: Float[Tensor, "places 4"], box: Float[Tensor, "4"]) -> Float[Tensor, " places"]:
    both = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1), (box[2:] - box[:2]).clamp(min=0).prod()
    return both / (areas[0] + areas[1] - both).clamp(min=1e-9)
