"""What a run says as it goes: loss, speed and the time that is left; all else stands in the log and on the page."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tqdm.auto import tqdm
from transformers.trainer_callback import ProgressCallback, TrainerControl, TrainerState

UNSAID = ("lr/", "grad_norm", "learning_rate", "epoch", "total_flos", "train_", "eval_runtime")
"""How the names of numbers begin that the log alone has."""


class Console(ProgressCallback):
    """A bar that counts the steps, on a terminal, and a line each time that something is logged."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to count, from the step that a killed run goes on from."""
        self._began, self._first = time.perf_counter(), state.global_step
        self.current_step = state.global_step
        if state.is_world_process_zero:
            bar = {"total": state.max_steps, "initial": state.global_step, "dynamic_ncols": True}
            self.training_bar = tqdm(**bar, disable=args.disable_tqdm or None)  # None: on a terminal alone

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Write a line of what was logged."""
        line = self._line(state, logs or {})
        if line and state.is_world_process_zero:
            tqdm.write(line)

    def _line(self, state: TrainerState, logs: Mapping[str, Any]) -> str:
        shown = {name: one for name, one in logs.items() if not name.startswith(UNSAID)}
        said = [f"step {state.global_step}/{state.max_steps}"]
        if "loss" in shown:
            said.append(f"loss {float(shown.pop('loss')):.4g}")
        if "samples_per_second" in shown:
            said.append(f"{shown.pop('samples_per_second'):.3g} samples/s")
            taken = state.global_step - self._first
            each = (time.perf_counter() - self._began) / max(taken, 1)
            said.append(f"{timedelta(seconds=round(each * (state.max_steps - state.global_step)))} left")
        said += [f"{name} {one:.4g}" if isinstance(one, float) else f"{name} {one}" for name, one in shown.items()]
        return "  ".join(said) if len(said) > 1 else ""
