"""Validation on cached features: greedy boxes for all of an image's expressions at once, corner by corner."""

import dataclasses
import random

import numpy as np
import torch
import torch.nn.functional as F
from cached_scenes import CachedScenes
from questions import Questions
from student import Student
from torch import Tensor
from torchvision.ops import box_iou

from vpp_plugins.train.packing import pack


@torch.no_grad()
def answer_boxes(
    student: Student, questions: Questions, features: Tensor, coarse: Tensor, texts: list[list[str]]
) -> list[Tensor]:
    """Boxes (xyxy fractions) for the expressions of each image, as greedy generation gives them."""
    segments = [[questions.grounding(text, [0, 0, 0, 0]) for text in per_image] for per_image in texts]
    packed = pack(questions.prefix, segments, questions.tokenizer.pad_token_id)
    first, last = questions.coordinates[0], questions.coordinates[-1]
    before = (packed.labels >= first) & (packed.labels <= last)  # places that a coordinate follows
    rows, columns = (places.view(-1, 4) for places in torch.nonzero(before, as_tuple=True))
    ids, answers = packed.input_ids.clone(), []
    with torch.autocast("cpu", torch.bfloat16):
        image_tokens, (_, prompts) = student.image_tokens(features), student.prompt_tokens(coarse)
        for corner in range(4):
            hidden = student(dataclasses.replace(packed, input_ids=ids), image_tokens, prompts)
            logits = F.linear(hidden[rows[:, corner], columns[:, corner]], student.table)
            value = logits[:, first : last + 1].argmax(-1)
            ids[rows[:, corner], columns[:, corner] + 1] = first + value
            answers.append(value / 100)
    return list(torch.stack(answers, -1).split([len(per_image) for per_image in texts]))


@torch.no_grad()
def validate(student: Student, questions: Questions, scenes: CachedScenes, count: int) -> dict[str, float]:
    """Acc@0.5 (and per kind of expression), mean IoU, and Acc@0.5 where images get each other's expressions."""
    student.eval()
    records = scenes.records[:count]
    texts = [[text for text, *_ in record["expressions"]] for record in records]
    boxes = [torch.tensor([box for _, box, *_ in record["expressions"]]) for record in records]
    strangers = [text for per_image in texts for text in per_image]
    random.Random(0).shuffle(strangers)
    rest = iter(strangers)
    shuffled = [[next(rest) for _ in per_image] for per_image in texts]
    right, wrong = (torch.cat(_ious(student, questions, scenes, asked, boxes)) for asked in (texts, shuffled))
    student.train()
    result = {"acc": (right >= 0.5).float().mean(), "iou": right.mean(), "shuffled": (wrong >= 0.5).float().mean()}
    kinds = np.array([kind for record in records for *_, kind, _ in record["expressions"]])
    by_kind = {kind: (right[torch.from_numpy(kinds == kind)] >= 0.5).float().mean() for kind in sorted(set(kinds))}
    return {name: round(float(value), 4) for name, value in {**result, **by_kind}.items()}


def _ious(
    student: Student, questions: Questions, scenes: CachedScenes, texts: list[list[str]], boxes: list[Tensor]
) -> list[Tensor]:
    ious = []
    for first in range(0, len(texts), 8):
        batch = range(first, min(first + 8, len(texts)))
        asked = [texts[i] for i in batch]
        found = answer_boxes(student, questions, scenes.features(batch), scenes.coarse(batch), asked)
        ious += [torch.diag(box_iou(f, boxes[i])).nan_to_num(0.0) for f, i in zip(found, batch, strict=True)]
    return ious
