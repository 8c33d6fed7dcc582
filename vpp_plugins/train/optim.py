"""How weights are stepped: Muon for matrices, each part's own schedule, an average of the weights over the steps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import SchedulerType, TrainerCallback, TrainingArguments, get_scheduler

from vpp_plugins.attach import unwrap
from vpp_plugins.errors import VPPError, known_name

MUON = "muon"
"""The recipe's `optim` for it."""
ADAMW_SHARE = 0.5
"""AdamW's rate as a share of the part's; both have Nesterov's momentum."""
READERS = ("projector", "vpp.projector")
"""Parts whose first layer reads an encoder's features."""
WITHOUT = ("reduce_lr_on_plateau", "greedy")
"""transformers' schedulers that follow the loss, and so are of a whole run, not of a part."""
AVERAGE_FILE = "weight_average.safetensors"
_LATE = 10
"""After n steps the decay is at most n / (n + 10): the first weights, which are random, are soon forgotten."""


def muon_groups(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups, each part's linear layers apart from what AdamW takes: vectors, convolutions, embeddings.

    AdamW also takes the first layer of each projector, which reads an encoder's many and uneven features: Muon moves
    along all of them alike, those that say nothing too.
    """
    host: Any = unwrap(model)
    tables = {id(table.weight) for table in (host.get_input_embeddings(), host.get_output_embeddings()) if table}
    linear = {id(module.weight) for module in host.modules() if isinstance(module, nn.Linear)} - tables
    split = []
    for group in groups:
        matrices = [parameter for parameter in group["params"] if id(parameter) in linear]
        if group["name"] in READERS:
            matrices = matrices[1:]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        if matrices:
            split.append({**group, "params": matrices, "use_fallback": False})
        if others:
            name = f"{group['name']} by AdamW" if matrices else group["name"]
            split.append({**group, "name": name, "params": others, "use_fallback": True, "weight_decay": 0.0})
    return split


def build_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return timm's Muon over `muon_groups`: matrices by Muon, all else by AdamW.

    Jordan et al., 2024; with the update's size matched to AdamW's (Liu et al., 2025, arXiv 2502.16982), so that rates
    and decay mean what they mean there.
    """
    from timm.optim.muon import Muon

    return Muon(groups, nesterov=True, betas=(0.9, 0.95), adjust_lr_fn="match_rms_adamw", fallback_lr_scale=ADAMW_SHARE)


@cache
def schedule_names() -> tuple[str, ...]:
    """Return the names of schedules that a part may have: those that depend on the step alone."""
    return tuple(str(kind.value) for kind in SchedulerType if kind.value not in WITHOUT)


def check_schedule(name: str) -> str:
    """Return the name, or raise VPPError where no schedule of parts has it."""
    return known_name(name, schedule_names(), "schedule of a part")


def scheduled(
    optimizer: torch.optim.Optimizer, arguments: TrainingArguments, *, steps: int, names: Sequence[str | None]
) -> LambdaLR:
    """Return one scheduler that gives every group of the optimizer the schedule of its name; None is the run's own.

    Warm-up is the run's, for the schedules that have one. `lr_scheduler_kwargs` are for the run's own schedule.
    """
    own = SchedulerType(arguments.lr_scheduler_type)
    factors = []
    for group, name in zip(optimizer.param_groups, names, strict=True):
        kind = own if name is None else SchedulerType(name)
        check_schedule(kind.value)
        # transformers writes schedules for an optimizer, and some take their bounds from its rate
        alone = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=group["lr"])
        try:
            schedule: Any = get_scheduler(
                kind,
                optimizer=alone,
                num_warmup_steps=arguments.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=arguments.lr_scheduler_kwargs if kind is own else None,  # type: ignore[arg-type]
            )
        except (ValueError, TypeError) as error:
            raise VPPError(
                f"the schedule '{kind.value}' needs lr_scheduler_kwargs ({error}), which only the run's own gets: "
                "make it lr_scheduler_type, and give other parts theirs."
            ) from None
        factors.extend(schedule.lr_lambdas)
    return LambdaLR(optimizer, factors)


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
        get_ema_multi_avg_fn(min(self.decay, step / (step + _LATE)))(self.values, self.parameters, step)

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
        save_file({str(number): value for number, value in enumerate(self.values)}, Path(folder) / AVERAGE_FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote; raises VPPError where there is nothing, or of another model."""
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
    """Calls functions with the number of each step, counted from 1, after the optimizer has stepped."""

    def __init__(self, functions: Sequence[Callable[[int], object]]) -> None:
        self.functions = functions

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step is counted already."""
        for function in self.functions:
            function(state.global_step)
