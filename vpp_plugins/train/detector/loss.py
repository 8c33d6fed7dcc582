"""DETR's set loss: queries are matched one to one with the objects of an image, and judged by class and box.

Carion et al., 2020 (arXiv 2005.12872), sections 3.1 and A.4: weights 1, 5 and 2 for class, L1 and generalised IoU; the
class "no object" counts a tenth, as it is that of most queries.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou, generalized_box_iou_loss

from vpp_plugins.boxes import BoxLike
from vpp_plugins.prompts.generators import Detections

NO_ONE = -1
"""The class of rows that only fill up a batch: images have different numbers of objects."""

Pairs: TypeAlias = tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]
"""Image, query and object of each pair that was matched."""


class Objects(NamedTuple):
    """What is in each image: class numbers, and boxes in fractions of the detector's square image."""

    classes: Int64[Tensor, "images objects"]
    boxes_cxcywh: Float[Tensor, "images objects 4"]


@dataclass(frozen=True)
class LossWeights:
    """How much the parts of the loss count; matching uses the first three too."""

    classes: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    no_object: float = 0.1


DETR_WEIGHTS = LossWeights()


def stack_objects(images: list[tuple[list[int], list[BoxLike]]], sizes_hw: list[tuple[int, int]]) -> Objects:
    """Return the objects of images, given as class numbers and xyxy pixels of the original, filled up to a batch.

    Boxes are placed where `images.letterbox` puts them: the image fills the square's longer side and is centred.
    """
    most = max((len(classes) for classes, _ in images), default=0)
    all_classes = torch.full((len(images), most), NO_ONE)
    all_boxes = torch.zeros(len(images), most, 4)
    for row, ((classes, boxes), size_hw) in enumerate(zip(images, sizes_hw, strict=True)):
        if classes:
            all_classes[row, : len(classes)] = torch.tensor(classes)
            all_boxes[row, : len(classes)] = box_convert(letterboxed(boxes, size_hw), "xyxy", "cxcywh")
    return Objects(all_classes, all_boxes)


def letterboxed(boxes_xyxy_px: list[BoxLike], size_hw: tuple[int, int]) -> Float[Tensor, "boxes 4"]:
    """Return boxes, in pixels of the original image, as xyxy fractions of the square that it is letterboxed into."""
    height, width = size_hw
    side = max(height, width)
    offset = torch.tensor([(side - width) / 2, (side - height) / 2]).repeat(2)
    return (torch.tensor([list(map(float, box)) for box in boxes_xyxy_px]) + offset) / side


def detection_loss(detections: Detections, objects: Objects, weights: LossWeights = DETR_WEIGHTS) -> Float[Tensor, ""]:
    """Return the loss of a batch, in float32. With a leading axis over decoder layers, their losses are added.

    Each layer is matched anew, as in DETR. L1 and generalised IoU are means over the batch's objects; images without
    any teach their queries to say "no object".
    """
    if detections.logits.ndim == 4:
        layers = [Detections(*layer) for layer in zip(*detections, strict=True)]
        return torch.stack([detection_loss(layer, objects, weights) for layer in layers]).sum()
    logits, boxes = detections.logits.float(), detections.boxes_cxcywh.float()
    images, queries, matched = match(Detections(logits, boxes), objects, weights)
    no_object = logits.shape[-1] - 1
    labels = torch.full(logits.shape[:2], no_object, device=logits.device)
    labels[images, queries] = objects.classes[images, matched]
    class_weights = torch.ones(no_object + 1, device=logits.device)
    class_weights[no_object] = weights.no_object
    loss: Tensor = weights.classes * F.cross_entropy(logits.flatten(0, 1), labels.flatten(), class_weights)
    found, truth = boxes[images, queries], objects.boxes_cxcywh[images, matched].to(boxes)
    count = max(1, len(images))
    l1 = (found - truth).abs().sum() / count
    giou: Tensor = generalized_box_iou_loss(_corners(found), _corners(truth), reduction="sum") / count
    return loss + weights.l1 * l1 + weights.giou * giou


@torch.no_grad()
def match(detections: Detections, objects: Objects, weights: LossWeights = DETR_WEIGHTS) -> Pairs:
    """Return the cheapest one-to-one assignment of queries to objects, image by image (Hungarian method).

    Where an image has more objects than there are queries, some objects stay without.
    """
    from scipy.optimize import linear_sum_assignment

    device = detections.logits.device
    probabilities, boxes = detections.logits.float().softmax(-1), detections.boxes_cxcywh.float()
    images, queries, matched = [], [], []
    for image, classes in enumerate(objects.classes):
        present = (classes != NO_ONE).nonzero()[:, 0]
        truth = objects.boxes_cxcywh[image, present].to(boxes)
        cost = -weights.classes * probabilities[image][:, classes[present]]
        cost = cost + weights.l1 * torch.cdist(boxes[image], truth, p=1)
        cost = cost - weights.giou * generalized_box_iou(_corners(boxes[image]), _corners(truth))
        # a model that diverged says so by its loss, not here
        rows, columns = linear_sum_assignment(cost.nan_to_num(nan=1e4, posinf=1e4, neginf=-1e4).cpu().numpy())
        images.append(torch.full((len(rows),), image, device=device))
        queries.append(torch.as_tensor(rows, device=device))
        matched.append(present[torch.as_tensor(columns, device=device)])
    return torch.cat(images), torch.cat(queries), torch.cat(matched)


@torch.no_grad()
def count_found(detections: Detections, objects: Objects, threshold: float = 0.5) -> Int64[Tensor, "images 3"]:
    """Return per image how many objects there are, how many some query's box meets, and is right about the class.

    A box meets an object at that IoU. Of the queries the one that overlaps most is asked for the class.
    """
    rows = []
    for image, classes in enumerate(objects.classes):
        present = classes != NO_ONE
        if not present.any():
            rows.append([0, 0, 0])
            continue
        truth = objects.boxes_cxcywh[image, present].float()
        best, query = box_iou(_corners(detections.boxes_cxcywh[image].float()), _corners(truth)).max(0)
        named = detections.logits[image, query, :-1].argmax(-1) == classes[present]
        met = best >= threshold
        rows.append([int(present.sum()), int(met.sum()), int((met & named).sum())])
    return torch.tensor(rows, device=detections.logits.device)


def _corners(boxes_cxcywh: Float[Tensor, "boxes 4"]) -> Float[Tensor, "boxes 4"]:
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy")
