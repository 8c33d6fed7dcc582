"""Each part's own schedule of its learning rate, by transformers' names: a recipe's `schedule.llm = "constant"`."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments, get_scheduler

from vpp_plugins.errors import VPPError, nearest

WITHOUT = ("reduce_lr_on_plateau", "greedy")
"""transformers' schedulers that follow the loss, and so are of a whole run, not of a part."""


@cache
def schedule_names() -> tuple[str, ...]:
    """Return the names of schedules that a part may have: those that depend on the step alone."""
    return tuple(str(kind.value) for kind in SchedulerType if kind.value not in WITHOUT)


def check_schedule(name: str) -> str:
    """Return the name, or raise VPPError where no schedule of parts has it."""
    if name not in schedule_names():
        known = ", ".join(schedule_names())
        raise VPPError(f"no schedule of a part is called '{name}'.{nearest(name, schedule_names())} Known: {known}.")
    return name


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
