"""An average of the weights over the steps: what a run ends with where its steps are noisy."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from vpp_plugins.errors import VPPError

AVERAGE_FILE = "weight_average.safetensors"
_LATE = 10
"""After n steps the decay is at most n / (n + 10): the first weights, which are random, are soon forgotten."""


class WeightAverage:
    """The exponential moving average of parameters, which stay as they are until `swapped`.

    average = WeightAverage(parameters, decay=0.998)
    average.update(step)        # after each optimizer step, counted from 1
    with average.swapped():     # the parameters hold the average here
        ...

    Raises VPPError for a decay outside 0 to 1.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise VPPError(f"average_weights should be a decay between 0 and 1, such as 0.998, but is {decay}.")
        self.decay = decay
        self.parameters = list(parameters)
        self.values: list[Tensor] = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters in, as they are after `step` steps."""
        average: Any = get_ema_multi_avg_fn(min(self.decay, step / (step + _LATE)))
        average(self.values, self.parameters, step)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the average in the parameters' place, and give them back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def save(self, folder: str | Path) -> None:
        """Write the average, to go on from."""
        from safetensors.torch import save_file

        save_file({str(number): value for number, value in enumerate(self.values)}, Path(folder) / AVERAGE_FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote; raises VPPError where there is nothing, or of another model."""
        from safetensors.torch import load_file

        path = Path(folder) / AVERAGE_FILE
        if not path.is_file():
            raise VPPError(f"'{folder}' holds no {AVERAGE_FILE}: it was saved without average_weights.")
        kept = load_file(path)
        if [kept[str(n)].shape for n in range(len(kept))] != [value.shape for value in self.values]:
            raise VPPError(f"'{path}' holds the average of other parameters than are trained here.")
        for number, value in enumerate(self.values):
            value.copy_(kept[str(number)])

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)


class EveryStep(TrainerCallback):
    """Calls a function with the number of each step, counted from 1, after the optimizer has stepped."""

    def __init__(self, function: Callable[[int], object]) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step is counted already."""
        self.function(state.global_step)
