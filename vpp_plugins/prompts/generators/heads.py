"""What a query says it sees, a class and a box: for pretraining a detector and for drawing, not used in grounding."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Detections(NamedTuple):
    """Per query: class logits, the last of which is "no object", and a box in fractions of the image, 0 to 1."""

    logits: Float[Tensor, "*batch queries classes"]
    boxes_cxcywh: Float[Tensor, "*batch queries 4"]


class DetectionHeads(nn.Module):
    """DETR's two heads over its queries: `num_classes` + 1 logits and a box.

    Modules are named as in DETR's own checkpoints. Queries of all decoder layers at once, with leading axes, are fine.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.bbox_embed = _BoxNet(width)

    def forward(self, queries: Float[Tensor, "*batch queries width"]) -> Detections:
        return Detections(self.class_embed(queries), self.bbox_embed(queries).sigmoid())


class _BoxNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)])

    def forward(self, queries: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(queries)))))
