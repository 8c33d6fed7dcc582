"""Whether a model that learns to ground still answers chats as well as before: a recipe's `keep`."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from vpp_plugins.train.collate import ABOUT, Collator
from vpp_plugins.train.labels import IGNORED
from vpp_plugins.train.trainer import VPPTrainer

BATCH = 8
KEPT_LOSS = "kept_loss"


class Forgetting(TrainerCallback):
    """Logs `kept_loss`, the mean loss of a held-out answer's token, before the first step and after the last.

    Every process works out all of it, so those that share a model stay in step.
    """

    def __init__(self, trainer: VPPTrainer, collator: Collator) -> None:
        self.trainer, self.collator = trainer, collator

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, unless the run goes on from a checkpoint."""
        if state.global_step == 0:
            self.trainer.log({KEPT_LOSS: self.measure()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure again, what the run ends with."""
        with self.trainer.averaged():
            self.trainer.log({KEPT_LOSS: self.measure()})

    @torch.no_grad()
    def measure(self) -> float:
        """Return the mean loss of a token, in nats."""
        model: Any = self.trainer.model
        model.eval()
        total, tokens = 0.0, 0
        for start in range(0, len(self.collator.data), BATCH):
            rows = range(start, min(start + BATCH, len(self.collator.data)))
            loss, count = self._batch(model, self.collator([self.collator.data[row] for row in rows]))
            total, tokens = total + loss * count, tokens + count
        return total / max(1, tokens)

    def _batch(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, int]:
        inputs = {name: value.to(self.trainer.args.device) for name, value in batch.items() if name != ABOUT}
        count = int((inputs["labels"][:, 1:] != IGNORED).sum())
        with self.trainer.accelerator.autocast():
            return float(model(**inputs).loss), count
