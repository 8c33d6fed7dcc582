"""What a loss beside the answer's own is, and what it may read."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpp_plugins.attach import unwrap
from vpp_plugins.errors import VPPError
from vpp_plugins.train.collate import About

OWN_RATE = 1e-4
"""Learning rate of a loss's own parameters, DETR's: heads begin with nothing."""


class AuxiliaryLoss(nn.Module):
    """A loss that is added to the answer's own. Subclasses write `forward`, and in `__init__` catch what they need.

    It is built on an attached model after PEFT has wrapped it, and raises VPPError, with the reason, for a model that
    it cannot work on. Its own parameters, such as heads, are trained beside the model's. Checkpoints hold them, the
    final weights do not; each process has them whole, whatever shards the model.
    """

    name: str
    """What a recipe calls it."""
    weight: float = 1.0
    """The recipe's."""
    reads_language_model: bool = True
    """Whether it listens to the language model, or to what comes before it alone."""
    file: str = ""
    """Where a checkpoint keeps its own parameters; "" is NAME_loss.safetensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._host = (unwrap(model),)  # in a tuple, else its parameters would count as this loss's own
        self._handles: list[Any] = []
        self.caught: dict[str, Any] = {}
        """Outputs of the forward that just ran, by the names that `catch` gave them."""

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the loss of the forward that just ran, before its weight.

        `about` has the batch's samples, with all their turns and boxes, and their images' metas; `inputs` are the
        model's, with `labels` (-100 where nothing is learned), and `outputs` what it returned. Beside the loss
        "coordinates" its logits are those of the learned places alone, [learned, vocabulary].
        """
        raise NotImplementedError

    def weighted(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Float[Tensor, ""]:
        """Return the loss as it is added."""
        loss: Tensor = self.weight * self(about, inputs, outputs)
        return loss

    @property
    def host(self) -> Any:
        """The host, out of its wrappers."""
        return self._host[0]

    def catch(self, name: str, module: nn.Module) -> None:
        """Keep the output of each of the module's forwards that is learned from; what generates is not."""
        self._handles.append(module.register_forward_hook(partial(self._keep, name)))

    def catch_inputs(self, name: str, module: nn.Module) -> None:
        """Keep the arguments of each of the module's forwards that is learned from, by name."""
        self._handles.append(module.register_forward_pre_hook(partial(self._keep_inputs, name), with_kwargs=True))

    def remove(self) -> None:
        """Take all hooks off; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self.caught.clear()

    def learning_rate(self, groups: Sequence[Mapping[str, Any]]) -> float:
        """Return the rate of its own parameters beside the model's groups."""
        return OWN_RATE

    def average_gradients(self) -> None:
        """Average the gradients of its own parameters over all processes, before each optimizer step."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in self.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()

    def save(self, folder: str | Path) -> None:
        """Write its own parameters, to go on from; nothing where it has none."""
        from safetensors.torch import save_file

        if state := self.state_dict():
            save_file(state, self._path(folder))

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote; raises VPPError where it is not there."""
        from safetensors.torch import load_file

        if not self.state_dict():
            return
        path = self._path(folder)
        if not path.is_file():
            raise VPPError(f"'{folder}' holds no {path.name}: it was saved without the {self.name} loss.")
        self.load_state_dict(load_file(path))

    def _path(self, folder: str | Path) -> Path:
        return Path(folder) / (self.file or f"{self.name}_loss.safetensors")

    def _keep_inputs(self, name: str, module: nn.Module, arguments: Any, named: Any) -> None:
        if torch.is_grad_enabled():
            self.caught[name] = inspect.signature(module.forward).bind(*arguments, **named).arguments

    def _keep(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self.caught[name] = output
