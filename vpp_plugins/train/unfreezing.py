"""Parts that begin frozen, and learn from a share of the steps on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from vpp_plugins.errors import VPPError
from vpp_plugins.train.preflight import check_gradients, squared_norms


class Unfreezing(TrainerCallback):
    """Freezes the groups of some parts at once, and has each learn when its share of the steps, 0 to 1, has come.

    `at_first` is called when the first share has come, also where the model has nothing of that part: a control goes
    the same way. Raises VPPError where several processes share the work, as they agree on what learns before it begins.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], shares: Mapping[str, float], *, processes: int = 1) -> None:
        self.at_first: Callable[[], object] = int
        self.waiting = {part: [group for group in groups if group["name"].split()[0] == part] for part in shares}
        self.shares, self._new = shares, list[Mapping[str, Any]]()
        if shares and processes > 1:
            raise VPPError(f"unfreeze works on one process, but {processes} share this run: leave it out.")
        for waiting in self.waiting.values():
            _have_learn(waiting, learns=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have learn what should by now; a run that goes on from a checkpoint catches up."""
        due = [part for part in self.waiting if state.global_step >= self.shares[part] * state.max_steps]
        if due:
            self.at_first()
        for part in due:
            self._new += self.waiting[part]
            _have_learn(self.waiting.pop(part), learns=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See that what has begun to learn got a gradient."""
        if self._new:
            check_gradients(self._new, squared_norms(self._new))
            self._new = []


def _have_learn(groups: Sequence[Mapping[str, Any]], *, learns: bool) -> None:
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(learns)
