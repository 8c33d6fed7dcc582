"""Numbers of boxes as tokens: neighbours count as nearly right, and what the model reads of its own box is disturbed.

Both are for hosts whose tokenizer has a token for every number of a box, such as the pocket model's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vpp_plugins.errors import VPPError
from vpp_plugins.train.labels import IGNORED

OTHERS = 0.5
"""Weight of a token that is no coordinate, beside a coordinate's 1: words and brackets are learned soon."""
BLUR = 1.5
"""Standard deviation of the targets and of the disturbed numbers, in steps."""
LATE = 0.8
"""From this share of the data on, a fifth of the boxes are hidden that were before: answers are read whole again."""


def coordinate_ids(tokenizer: Any) -> Int64[Tensor, "101"]:
    """Return the tokens of 0.0, 0.01 and so on to 1.0, as LLaVA writes them; raises VPPError where one is several."""
    numbers = [str(round(step / 100, 2)) for step in range(101)]
    vocabulary = tokenizer.get_vocab()
    if missing := [number for number in numbers if number not in vocabulary]:
        raise VPPError(
            "the loss 'coordinates' and hide_boxes need a tokenizer with a token for every number of a box, but this "
            f"one has none for {len(missing)} of 101, {missing[0]} for one: leave them out."
        )
    return torch.tensor([vocabulary[number] for number in numbers])


def bell(values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 101"]:
    """Return distributions over the 101 numbers, each a bell around a value from 0 to 1."""
    steps = torch.arange(101, device=values.device)
    weights = (-((100 * values[..., None] - steps) ** 2) / (2 * BLUR**2)).exp()
    return weights / weights.sum(-1, keepdim=True)


@contextmanager
def learned_alone(head: nn.Module, labels: Int64[Tensor, "batch length"]) -> Iterator[None]:
    """Have an output head read only the places whose next token is learned; its logits are [learned, vocabulary].

    Of SmolLM2's 49,152 tokens that saves 0.5 of 6 CPU seconds a step.
    """
    learned = F.pad(labels[:, 1:] != IGNORED, (0, 1))
    handle = head.register_forward_pre_hook(lambda _, given: (given[0][learned], *given[1:]))
    try:
        yield
    finally:
        handle.remove()


class SoftBoxLoss:
    """Cross-entropy on answers, a coordinate's target being a bell over its neighbours; Trainer's `compute_loss_func`.

    The bell's own entropy is taken off, so that a perfect answer costs nothing.
    """

    def __init__(self, coordinates: Int64[Tensor, "101"]) -> None:
        self.coordinates, self.bell = coordinates, bell(torch.linspace(0, 1, len(coordinates)))

    def __call__(
        self, outputs: Any, labels: Int64[Tensor, "batch length"], num_items_in_batch: Any = None
    ) -> Float[Tensor, ""]:
        """Return the mean over all answers' tokens, weighted; of a part of a batch its share, as Trainer wants it.

        The logits are those of all places [batch, length, vocabulary], or of `learned_alone`.
        """
        after = labels[:, 1:]
        learned = after != IGNORED
        target, logits = after[learned], outputs.logits
        log_probability = (logits if logits.ndim == 2 else logits[:, :-1][learned]).float().log_softmax(-1)
        coordinates, bell = self.coordinates.to(target.device), self.bell.to(target.device)
        is_number, step = (target[:, None] == coordinates).max(-1)
        wanted = bell[step[is_number]]
        soft = (wanted * (wanted.clamp(min=1e-9).log() - log_probability[is_number][:, coordinates])).sum()
        hard = F.nll_loss(log_probability[~is_number], target[~is_number], reduction="sum")
        mean = (soft + OTHERS * hard) / (is_number.sum() + OTHERS * (~is_number).sum()).clamp(min=OTHERS)
        return mean if num_items_in_batch is None else mean * (learned.sum() / num_items_in_batch)


@dataclass(frozen=True)
class HiddenBoxes:
    """Blurs the numbers of boxes that stand in answers as the model reads them, and makes `share` of the boxes random.

    With the true corner in sight, the later numbers of a box need no words; a model that must do without learns the
    words sooner. The labels stay true. What happens to a batch depends on its samples' numbers alone.
    """

    coordinates: Int64[Tensor, "101"]
    share: float
    samples: int
    """How many there are."""

    def __call__(
        self, input_ids: Int64[Tensor, "batch length"], labels: Int64[Tensor, "batch length"], rows: tuple[int, ...]
    ) -> Int64[Tensor, "batch length"]:
        """Return the ids of a batch with its answers' numbers changed."""
        changed = input_ids.clone()
        for number, row in enumerate(rows):  # the grey image of a batch of text has no number
            changed[number] = self._row(input_ids[number], labels[number], row)
        return changed

    def _row(self, ids: Tensor, labels: Tensor, row: int) -> Tensor:
        generator = torch.Generator().manual_seed(row)
        learned = labels != IGNORED
        matches = ids[:, None] == self.coordinates
        number = matches.any(-1) & learned
        box = (learned & ~F.pad(learned, (1, 0))[:-1]).cumsum(0)  # answers are runs
        share = self.share if row < LATE * self.samples else self.share / 5
        hidden = (torch.rand(int(box.max()) + 1, generator=generator) < share)[box]
        noise = (torch.randn(len(ids), generator=generator) * BLUR).round().long()
        last = len(self.coordinates) - 1
        blurred = (matches.int().argmax(-1) + noise).clamp(0, last)
        drawn = torch.randint(0, last + 1, (len(ids),), generator=generator)
        return torch.where(number, self.coordinates[torch.where(hidden, drawn, blurred)], ids)
