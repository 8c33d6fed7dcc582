"""DETR's set loss: beside DETR's own numbers, written out by hand, and what must hold of any set loss."""

import itertools

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from vpp_plugins.boxes import ImageMeta, codec
from vpp_plugins.images import letterbox
from vpp_plugins.prompts.generators import DetectionHeads, Detections
from vpp_plugins.train.detector.loss import (
    NO_ONE,
    LossWeights,
    Objects,
    count_found,
    detection_loss,
    letterboxed,
    match,
    stack_objects,
)

CLASSES = 3


def some(images: int = 2, queries: int = 5) -> Detections:
    return Detections(torch.randn(images, queries, CLASSES + 1), 0.2 + 0.4 * torch.rand(images, queries, 4))


def objects(*counts: int) -> Objects:
    most = max(counts)
    classes = torch.full((len(counts), most), NO_ONE)
    for row, count in enumerate(counts):
        classes[row, :count] = torch.randint(CLASSES, (count,))
    return Objects(classes, 0.2 + 0.4 * torch.rand(len(counts), most, 4))


def certain(wanted: Objects, queries: int = 5) -> Detections:
    """Detections that are exactly right, in the first queries."""
    logits = torch.full((len(wanted.classes), queries, CLASSES + 1), -20.0)
    boxes = torch.rand(len(wanted.classes), queries, 4)
    logits[..., CLASSES] = 20.0
    for image, classes in enumerate(wanted.classes):
        for query, number in enumerate(classes.tolist()):
            if number != NO_ONE:
                logits[image, query, CLASSES], logits[image, query, number] = -20.0, 20.0
                boxes[image, query] = wanted.boxes_cxcywh[image, query]
    return Detections(logits, boxes)


def corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


class TestMatching:
    def test_no_other_assignment_is_cheaper(self) -> None:
        seen, wanted = some(1, 4), objects(3)
        probabilities = seen.logits[0].softmax(-1)
        cost = (
            -probabilities[:, wanted.classes[0]]
            + 5 * torch.cdist(seen.boxes_cxcywh[0], wanted.boxes_cxcywh[0], p=1)
            - 2 * generalized_box_iou(corners(seen.boxes_cxcywh[0]), corners(wanted.boxes_cxcywh[0]))
        )
        _, queries, matched = match(seen, wanted)
        best = min(sum(cost[q, o] for o, q in enumerate(order)) for order in itertools.permutations(range(4), 3))
        assert cost[queries, matched].sum() == pytest.approx(float(best), abs=1e-6)

    def test_every_object_has_one_query_and_filling_has_none(self) -> None:
        images, queries, matched = match(some(3), objects(2, 0, 4))
        assert images.tolist() == [0, 0, 2, 2, 2, 2]
        assert sorted(matched.tolist()) == [0, 0, 1, 1, 2, 3]
        assert len({*zip(images.tolist(), queries.tolist(), strict=True)}) == 6

    def test_more_objects_than_queries(self) -> None:
        assert len(match(some(1, 2), objects(4))[0]) == 2

    def test_a_model_that_diverged_still_gets_its_loss(self) -> None:
        seen = Detections(torch.full((1, 5, CLASSES + 1), torch.nan), torch.full((1, 5, 4), torch.nan))
        assert detection_loss(seen, objects(2)).isnan()


class TestLoss:
    def test_is_detrs(self) -> None:
        """The parts as the paper has them, from scratch."""
        seen, wanted = some(2), objects(3, 1)
        images, queries, matched = match(seen, wanted)
        labels = torch.full((2, 5), CLASSES)
        labels[images, queries] = wanted.classes[images, matched]
        weight = torch.where(labels == CLASSES, 0.1, 1.0)
        surprise = -seen.logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        found, truth = seen.boxes_cxcywh[images, queries], wanted.boxes_cxcywh[images, matched]
        giou = generalized_box_iou(corners(found), corners(truth)).diag()
        expected = (weight * surprise).sum() / weight.sum()
        expected = expected + 5 * (found - truth).abs().sum() / 4 + 2 * (1 - giou).sum() / 4
        assert detection_loss(seen, wanted) == pytest.approx(float(expected), rel=1e-4)

    def test_right_detections_cost_nothing_in_any_order(self) -> None:
        wanted = objects(3, 1)
        seen = certain(wanted)
        order = torch.randperm(5)
        shuffled = Detections(seen.logits[:, order], seen.boxes_cxcywh[:, order])
        assert detection_loss(seen, wanted) == pytest.approx(0, abs=1e-4)
        assert detection_loss(shuffled, wanted) == pytest.approx(0, abs=1e-4)

    def test_filling_up_changes_nothing(self) -> None:
        seen, wanted = some(), objects(2, 2)
        filled = Objects(
            torch.nn.functional.pad(wanted.classes, (0, 3), value=NO_ONE),
            torch.nn.functional.pad(wanted.boxes_cxcywh, (0, 0, 0, 3)),
        )
        assert torch.equal(detection_loss(seen, wanted), detection_loss(seen, filled))

    def test_layers_are_added(self) -> None:
        first, last, wanted = some(), some(), objects(2, 1)
        both = Detections(*map(torch.stack, zip(first, last, strict=True)))
        apart = detection_loss(first, wanted) + detection_loss(last, wanted)
        assert detection_loss(both, wanted) == pytest.approx(float(apart), rel=1e-6)

    def test_images_without_objects_teach_no_object_and_leave_no_parameter_without_gradient(self) -> None:
        """Data-parallel training waits for a gradient of every parameter."""
        heads = DetectionHeads(8, CLASSES)
        nothing = Objects(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 4))
        optimizer = torch.optim.Adam(heads.parameters(), lr=0.1)
        queries = torch.randn(2, 5, 8)
        for _ in range(50):
            optimizer.zero_grad()
            detection_loss(heads(queries), nothing).backward()
            assert all(parameter.grad is not None for parameter in heads.parameters())
            optimizer.step()
        assert heads(queries).logits.softmax(-1)[..., -1].min() > 0.9

    def test_weights_count(self) -> None:
        seen, wanted = some(), objects(2, 2)
        boxes_only = detection_loss(seen, wanted, LossWeights(classes=0.0))
        twice = detection_loss(seen, wanted, LossWeights(classes=0.0, l1=10.0, giou=4.0))
        assert twice == pytest.approx(2 * float(boxes_only), rel=1e-5)

    def test_learns(self) -> None:
        heads, queries, wanted = DetectionHeads(16, CLASSES), torch.randn(2, 5, 16), objects(3, 2)
        optimizer = torch.optim.Adam(heads.parameters(), lr=0.01)
        first = detection_loss(heads(queries), wanted).item()
        for _ in range(200):
            optimizer.zero_grad()
            loss = detection_loss(heads(queries), wanted)
            loss.backward()
            optimizer.step()
        assert loss < first / 10
        assert count_found(heads(queries), wanted).sum(0).tolist() == [5, 5, 5]


class TestCounting:
    def test_objects_met_and_named(self) -> None:
        wanted = objects(2, 0, 1)
        seen = certain(wanted)
        assert count_found(seen, wanted).tolist() == [[2, 2, 2], [0, 0, 0], [1, 1, 1]]
        wrong = Objects((wanted.classes + 1).remainder(CLASSES).where(wanted.classes != NO_ONE, NO_ONE), wanted[1])
        assert count_found(seen, wrong).tolist() == [[2, 2, 0], [0, 0, 0], [1, 1, 0]]
        assert count_found(seen, Objects(wanted.classes, wanted.boxes_cxcywh / 10)).sum(0).tolist() == [3, 0, 0]


class TestBoxes:
    @pytest.mark.parametrize("size_hw", [(40, 80), (90, 30), (64, 64), (41, 80)])
    def test_lie_where_the_letterboxed_image_has_them(self, size_hw: tuple[int, int]) -> None:
        """A white box painted on the original is white where its letterboxed box says, up to a pixel."""
        from PIL import Image, ImageDraw

        height, width = size_hw
        box = (width * 0.25, height * 0.5, width * 0.75, height * 1.0)
        image = Image.new("RGB", (width, height), "black")
        ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
        white = letterbox(image, 128)[0] > 0
        rows, columns = white.any(1).nonzero(), white.any(0).nonzero()
        found = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        assert (letterboxed([box], size_hw)[0] * 128).tolist() == pytest.approx(found, abs=2)

    def test_are_those_of_the_answer(self) -> None:
        """What the answer's text says, read by the family's codec, is what the queries are taught."""
        meta = ImageMeta((300, 400))
        box = (100.0, 60.0, 300.0, 180.0)
        (read,) = codec("llava").decode(codec("llava").encode([box], meta), meta).boxes_xyxy_px
        assert torch.allclose(letterboxed([read], (300, 400)), letterboxed([box], (300, 400)), atol=0.01)

    def test_stacking_fills_up(self) -> None:
        stacked = stack_objects([([1, 0], [(0, 0, 40, 20), (0, 0, 20, 20)]), ([], [])], [(20, 40), (20, 40)])
        assert stacked.classes.tolist() == [[1, 0], [NO_ONE, NO_ONE]]
        assert stacked.boxes_cxcywh[0].tolist() == [[0.5, 0.5, 1.0, 0.5], [0.25, 0.5, 0.5, 0.5]]
