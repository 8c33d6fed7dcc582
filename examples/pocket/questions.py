"""Turn a scene's expressions into packed questions and answers, in the words of the LLaVA family."""

import random
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vpp_plugins.pocket import AXES_SENTENCE, COORDINATES, GROUNDING_QUESTION, IMAGE_TOKEN, REGION_QUESTION
from vpp_plugins.train.packing import Segment

VPP_TOKEN = "<|vpp|>"
Box = Sequence[float]


class Questions:
    """Tokenizes questions once each; `tokens_per_image` and `prompts_per_image` size the prefix."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, tokens_per_image: int, prompts_per_image: int) -> None:
        self.tokenizer = tokenizer
        self.prefix = self._ids("USER: " + IMAGE_TOKEN * tokens_per_image + VPP_TOKEN * prompts_per_image + "\n")
        self.coordinates = tokenizer.convert_tokens_to_ids(list(COORDINATES))
        self._ids = lru_cache(maxsize=500_000)(self._ids)  # type: ignore[method-assign]

    def grounding(self, expression: str, box: Box, axes: bool = False) -> Segment:
        """The family's question for a box, and the answer."""
        question = self._ids(f"{GROUNDING_QUESTION} {expression}.{AXES_SENTENCE if axes else ''} ASSISTANT:")
        return Segment((*question, *self._box(box), self.tokenizer.eos_token_id), len(question))

    def region(self, box: Box, name: str) -> Segment:
        """The way back: what is in the box."""
        question = (*self._ids(REGION_QUESTION), *self._box(box), *self._ids(". ASSISTANT:"))
        return Segment((*question, *self._ids(f" {name}"), self.tokenizer.eos_token_id), len(question))

    def words(self, name: str | None) -> tuple[int, ...]:
        """The tokens of a noun; the padding token for none."""
        return (self.tokenizer.pad_token_id,) if name is None else self._ids(f" {name}")

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _box(self, box: Box) -> tuple[int, ...]:
        opening, comma, closing = (self.tokenizer.convert_tokens_to_ids(t) for t in ("[", ", ", "]"))
        x1, y1, x2, y2 = (self.coordinates[min(100, max(0, round(100 * value)))] for value in box)
        return opening, x1, comma, y1, comma, x2, comma, y2, closing


def choose(scene: dict, questions: Questions, rng: random.Random, groundings: int, regions: int) -> list[Segment]:
    """A random choice of one scene's expressions and a few regions to be named."""
    expressions = rng.sample(scene["expressions"], min(groundings, len(scene["expressions"])))
    segments = [questions.grounding(text, box, axes=rng.random() < 0.1) for text, box, _, _ in expressions]
    for name, box in rng.sample(scene["objects"], min(regions, len(scene["objects"]))):
        segments.append(questions.region([value + rng.gauss(0, 0.01) for value in box], name))
    rng.shuffle(segments)
    return segments


def patch_words(scene: dict, questions: Questions, side: int = 10) -> tuple[Tensor, Tensor]:
    """Which words each cell of an image stands for: a (cell, token) pair per word of the object at the cell's centre.

    Of objects that overlap the smaller one counts; cells without an object get the padding token.
    """
    owner: dict[int, str] = {}
    for name, (x1, y1, x2, y2) in sorted(scene["objects"], key=lambda o: (o[1][0] - o[1][2]) * (o[1][3] - o[1][1])):
        columns = [c for c in range(side) if x1 <= (c + 0.5) / side <= x2]
        rows = [r for r in range(side) if y1 <= (r + 0.5) / side <= y2]
        owner.update({r * side + c: name for r in rows for c in columns})
    pairs = [(cell, word) for cell in range(side * side) for word in questions.words(owner.get(cell))]
    cells, words = torch.tensor(pairs).T
    return cells, words


def disturb(input_ids: Tensor, labels: Tensor, questions: Questions, share: float) -> Tensor:
    """Blur the answers' coordinates as inputs (targets stay); for a `share` of the boxes, make them random.

    With the true corner in sight the later corners need no words; a model that must do without learns the words faster.
    """
    first, last = questions.coordinates[0], questions.coordinates[-1]
    coordinate = (input_ids >= first) & (input_ids <= last) & (labels != -100)
    value = input_ids - first
    blurred = (value + torch.randn(value.shape).mul(1.5).round().long()).clamp(0, 100)
    # the answer's coordinates are two tokens apart: boxes are told by where a bracket stands before them
    box = (input_ids == questions.tokenizer.convert_tokens_to_ids("[")).cumsum(-1)
    lost = (torch.rand(input_ids.shape[0], int(box.max()) + 1) < share).gather(1, box)
    changed = torch.where(lost, torch.randint(0, 101, value.shape), blurred)
    return torch.where(coordinate, first + changed, input_ids)
