"""What baking a prompt does to a model's answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from vpp_plugins.attach import vpp_disabled
from vpp_plugins.boxes import Box, box_iou
from vpp_plugins.export.apply_axes import apply_axes, load_axes
from vpp_plugins.ground import Grounder
from vpp_plugins.processor import VPPProcessor


@dataclass(frozen=True, kw_only=True)
class BakedScores:
    """Mean IoU, and share above 0.5, with the prompt attached and with it baked, over the same questions."""

    questions: int
    iou_attached: float
    iou_baked: float
    acc_50_attached: float
    acc_50_baked: float
    same_answers: int
    """Answers that are the same, letter by letter."""


def score_baked(
    model: nn.Module,
    processor: VPPProcessor,
    folder: str | Path,
    questions: Sequence[tuple[Image.Image, str, Box]],
    *,
    batch_size: int = 8,
) -> BakedScores:
    """Ask the same questions, an image, an expression and its true box, with the prompt attached and with it baked."""
    axes, grounder = load_axes(folder), Grounder(model, processor)
    images = [image for image, _, _ in questions]
    metas = processor.image_metas(images)
    asked = [grounder.codec.prompt(expression) for _, expression, _ in questions]
    attached, baked = [], []
    for start in range(0, len(questions), batch_size):
        batch = slice(start, start + batch_size)
        attached += [text for text, _ in grounder.ask(images[batch], asked[batch])]
        with vpp_disabled(model):
            laid = [apply_axes(image, axes) for image in images[batch]]
            baked += [text for text, _ in grounder.ask(laid, asked[batch])]

    def overlaps(answers: Sequence[str]) -> list[float]:
        read = [grounder.codec.decode(text, meta).boxes_xyxy_px for text, meta in zip(answers, metas, strict=True)]
        return [box_iou(boxes[0], true) if boxes else 0.0 for boxes, (_, _, true) in zip(read, questions, strict=True)]

    with_float, with_baked = np.array(overlaps(attached)), np.array(overlaps(baked))
    return BakedScores(
        questions=len(questions),
        iou_attached=float(with_float.mean()),
        iou_baked=float(with_baked.mean()),
        acc_50_attached=float((with_float >= 0.5).mean()),
        acc_50_baked=float((with_baked >= 0.5).mean()),
        same_answers=sum(a == b for a, b in zip(attached, baked, strict=True)),
    )
