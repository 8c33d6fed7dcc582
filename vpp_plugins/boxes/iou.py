"""How much two boxes overlap. Plain floats: evaluation and rewards compare one pair at a time."""

from vpp_plugins.boxes.frames import Box, BoxLike


def box_iou(a: BoxLike, b: BoxLike) -> float:
    """Return intersection over union of two xyxy boxes, 0 to 1.

    Corners are not reordered: a box of no area, or with x2 < x1, overlaps nothing and gives 0.
    """
    overlap, union, _ = _areas(a, b)
    return overlap / union if overlap > 0 else 0.0


def generalized_box_iou(a: BoxLike, b: BoxLike) -> float:
    """Return IoU minus the share of the smallest enclosing box that neither covers, -1 to 1 (arXiv 1902.09630).

    Two boxes whose enclosing box has no area give 0.
    """
    overlap, union, hull = _areas(a, b)
    if hull == 0:
        return 0.0
    return (overlap / union if overlap > 0 else 0.0) - (hull - union) / hull


def _areas(a: BoxLike, b: BoxLike) -> tuple[float, float, float]:
    """Areas of the intersection, of the union, and of the smallest box around both."""
    ax1, ay1, ax2, ay2 = map(float, a)
    bx1, by1, bx2, by2 = map(float, b)
    area_a, area_b = _area((ax1, ay1, ax2, ay2)), _area((bx1, by1, bx2, by2))
    overlap = _area((max(ax1, bx1), max(ay1, by1), min(ax2, bx2), min(ay2, by2)))
    hull = _area((min(ax1, bx1), min(ay1, by1), max(ax2, bx2), max(ay2, by2)))
    return overlap, area_a + area_b - overlap, hull


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
