"""An auxiliary detection loss on the local prompt's queries: it makes them useful where no trained detector is at hand.

    task = AuxiliaryDetection(model)          # after PEFT has wrapped the model
    loss = model(**inputs).loss + task.loss(stack_objects(...))
    task.remove()

The heads are for training alone. They are no part of the model, so no host file and no `vpp.safetensors` holds them,
and they work alike whatever shards the model: each process has them whole, and `average_gradients` keeps them equal.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.attach import active_vpp, unwrap
from vpp_plugins.boxes import BoxLike
from vpp_plugins.data import Describe, Locate, Sample
from vpp_plugins.errors import VPPError
from vpp_plugins.prompts.generators import DetectionHeads
from vpp_plugins.train.detector.loss import Objects, detection_loss, stack_objects

HEADS_FILE = "detection_heads.safetensors"


class AuxiliaryDetection(nn.Module):
    """Detection heads that listen to an attached model's query generator.

    There is one class, "named in the text": what a sample speaks of is an object, whatever it is called. `weight`
    scales the loss. Raises VPPError where the model has no local prompt.
    """

    def __init__(self, model: nn.Module, *, weight: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        local = active_vpp(unwrap(model)).local_vpp
        if local is None:
            raise VPPError("the detection loss is on the local prompt's queries, but this model has no local prompt.")
        self.weight = weight
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.heads = DetectionHeads(local.query_width, num_classes=1)
        self.heads.to(next(local.parameters()).device)
        self._queries: Float[Tensor, "images queries width"] | None = None
        self._handle = local.generator.register_forward_hook(self._listen)

    def remove(self) -> None:
        """Stop listening; the model is as it was."""
        self._handle.remove()
        self._queries = None

    def loss(self, objects: Objects) -> Float[Tensor, ""]:
        """Return the loss of the forward that just ran, whose images hold these objects, in the same order.

        After a forward without images it is zero, with a gradient of zeros. Raises VPPError where images and
        objects are not equally many.
        """
        queries, self._queries = self._queries, None
        if queries is None:
            return torch.stack([parameter.sum() for parameter in self.heads.parameters()]).sum() * 0
        if len(queries) != len(objects.classes):
            raise VPPError(
                f"the forward had {len(queries)} images, but objects of {len(objects.classes)} were given: give one "
                "row for each image, in reading order."
            )
        on_device = Objects(*(part.to(queries.device) for part in objects))
        return self.weight * detection_loss(self.heads(queries.float()), on_device)

    def average_gradients(self) -> None:
        """Average the heads' gradients over all processes, before each optimizer step."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in self.heads.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()

    def save(self, folder: str | Path) -> None:
        """Write the heads, to go on from."""
        from safetensors.torch import save_file

        save_file(self.heads.state_dict(), Path(folder) / HEADS_FILE)

    def load(self, folder: str | Path) -> None:
        """Read the heads that `save` wrote; raises VPPError where there are none."""
        from safetensors.torch import load_file

        path = Path(folder) / HEADS_FILE
        if not path.is_file():
            raise VPPError(f"'{folder}' holds no {HEADS_FILE}: it was saved without the detection loss.")
        self.heads.load_state_dict(load_file(path))

    def _listen(self, generator: nn.Module, arguments: Any, queries: Tensor) -> None:
        if torch.is_grad_enabled():  # not while the model generates
            self._queries = queries


def named_objects(samples: Sequence[Sample]) -> Objects:
    """Return what samples, with an image each, speak of: every box that is to be found or described, once."""
    images: list[tuple[list[int], list[BoxLike]]] = []
    for sample in samples:
        boxes: list[BoxLike] = list(dict.fromkeys(_boxes(sample)))
        images.append(([0] * len(boxes), boxes))
    return stack_objects(images, [sample.meta.size_hw for sample in samples])


def _boxes(sample: Sample) -> Iterator[tuple[float, ...]]:
    for turn in sample.turns:
        if isinstance(turn, Locate | Describe):
            yield from turn.boxes
