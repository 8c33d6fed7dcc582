"""VPPTrainer with the auxiliary detection loss: a recipe's `detection_loss`."""

from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins.train.collate import ABOUT, About
from vpp_plugins.train.detector.loss import Objects, stack_objects
from vpp_plugins.train.losses.detection import AuxiliaryDetection, named_objects
from vpp_plugins.train.trainer import VPPTrainer

HEADS_RATE = 1e-4
"""Learning rate of the heads, DETR's own, unless the queries learn faster: the heads begin with nothing."""


class DetectionTrainer(VPPTrainer):
    """VPPTrainer that adds a task's loss. Checkpoints hold its heads too; the final weights do not."""

    def __init__(self, *args: Any, task: AuxiliaryDetection, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task = task.to(self.args.device)
        self._objects = stack_objects([], [])
        self._stepped = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Add a group for the heads."""
        if self.optimizer is None:
            queries = [group["lr"] for group in self.groups if str(group["name"]).split()[0] == "vpp.local"]
            rate = max([HEADS_RATE, *queries])
            heads = {"params": list(self.task.parameters()), "lr": rate, "weight_decay": 0.0}
            if self._muon:
                heads["use_fallback"] = True
            super().create_optimizer(model).add_param_group(heads)
        optimizer: Any = self.optimizer
        return optimizer  # type: ignore[no-any-return]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Look up what the batch's images hold, and keep the heads of all processes equal."""
        self._objects = _named(inputs[ABOUT])
        if self._stepped:  # Trainer empties the gradients of the model alone
            self.task.zero_grad()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._stepped = self.accelerator.sync_gradients
        if self._stepped:
            self.task.average_gradients()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add the detection loss of the forward's images."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + self.task.loss(self._objects) / self._accumulated(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._in_checkpoint and self.args.should_save:
            self.task.save(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.task.load(resume_from_checkpoint)


def _named(about: About) -> Objects:
    # a batch of text alone has a stand-in image, in which there is nothing
    return named_objects(about.imaged) if about.imaged else stack_objects([([], [])], [(1, 1)])
