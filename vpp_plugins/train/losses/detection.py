"""An auxiliary detection loss on the local prompt's queries: it makes them useful where no trained detector is at hand.

    task = AuxiliaryDetection(model)          # after PEFT has wrapped the model
    loss = model(**inputs).loss + task.loss(stack_objects(...))
    task.remove()

The heads are for training alone. They are no part of the model, so no host file and no `vpp.safetensors` holds them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.attach import active_vpp
from vpp_plugins.boxes import BoxLike
from vpp_plugins.data import Describe, Locate, Sample
from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.generators import DetectionHeads
from vpp_plugins.train.collate import About
from vpp_plugins.train.detector import Objects, detection_loss, stack_objects
from vpp_plugins.train.losses.base import AuxiliaryLoss

HEADS_FILE = "detection_heads.safetensors"


class AuxiliaryDetection(AuxiliaryLoss):
    """Detection heads that listen to an attached model's query generator.

    There is one class, "named in the text": what a sample speaks of is an object, whatever it is called. `weight`
    scales the loss. Raises VPPError where the model has no local prompt.
    """

    name, file = "detection", HEADS_FILE
    reads_language_model = False

    def __init__(self, model: nn.Module, processor: Any = None, *, weight: float = 1.0, seed: int = 0) -> None:
        super().__init__(model)
        local = active_vpp(self.host).local_vpp
        if local is None:
            raise VPPError(
                "the detection loss is on the local prompt's queries, but this model has no local prompt: leave it out."
            )
        self.weight = weight
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.heads = DetectionHeads(local.query_width, num_classes=1)
        self.heads.to(next(local.parameters()).device)
        self.catch("queries", local.generator)

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the loss on what the batch's samples speak of."""
        # a batch of text alone has a stand-in image, in which there is nothing
        return self._loss(named_objects(about.imaged) if about.imaged else stack_objects([([], [])], [(1, 1)]))

    def loss(self, objects: Objects) -> Float[Tensor, ""]:
        """Return the loss of the forward that just ran, whose images hold these objects, in the same order.

        After a forward without images it is zero, with a gradient of zeros. Raises VPPError where images and
        objects are not equally many.
        """
        return self.weight * self._loss(objects)

    def learning_rate(self, groups: Sequence[Mapping[str, Any]]) -> float:
        """Return at least the rate of the queries that the heads read."""
        queries = [float(group["lr"]) for group in groups if str(group["name"]).split()[0] == "vpp.local"]
        return max([super().learning_rate(groups), *queries])

    def _loss(self, objects: Objects) -> Float[Tensor, ""]:
        queries = self.caught.pop("queries", None)
        if queries is None:
            return torch.stack([parameter.sum() for parameter in self.heads.parameters()]).sum() * 0
        if len(queries) != len(objects.classes):
            raise VPPError(
                f"the forward had {len(queries)} images, but objects of {len(objects.classes)} were given: give one "
                "row for each image, in reading order."
            )
        on_device = Objects(*(part.to(queries.device) for part in objects))
        return detection_loss(self.heads(queries.float()), on_device)


def named_objects(samples: Sequence[Sample]) -> Objects:
    """Return what samples, with an image each, speak of: every box that is to be found or described, once."""
    named: list[list[BoxLike]] = [
        list(dict.fromkeys(box for turn in sample.turns if isinstance(turn, Locate | Describe) for box in turn.boxes))
        for sample in samples
    ]
    return stack_objects([([0] * len(boxes), boxes) for boxes in named], [one.meta.size_hw for one in samples])
