"""What a run has cost so far. Checkpoints keep it, so that a run which was killed goes on counting."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from vpp_plugins.files import write_whole

COST = "cost.json"


class Cost:
    """Counts samples, CPU seconds and seconds of a run, and what kept encodings have saved of them.

    CPU seconds are those of this process and the processes that it started, such as the loader's workers. Steps that a
    killed run takes once more are counted once.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.saved: Callable[[], float] = float
        """Returns the CPU seconds that were saved so far."""
        self._cpu_before, self._before, self._saved_before = 0.0, 0.0, 0.0
        self._cpu_began, self._began = _cpu_seconds(), time.perf_counter()

    def begin(self, checkpoint: Path | None = None) -> None:
        """Count from now on, or go on from where a checkpoint was; one of before 0.2 has no cost, and counts as 0."""
        if checkpoint is not None and (checkpoint / COST).is_file():
            known = json.loads((checkpoint / COST).read_bytes())
            self.samples, self._cpu_before, self._before = known["samples"], known["cpu_seconds"], known["seconds"]
            self._saved_before = known["cpu_seconds_saved"]
        self._cpu_began, self._began = _cpu_seconds(), time.perf_counter()

    def write(self, folder: Path, step: int, device: str) -> None:
        """Write what there is to pay after so many steps on a device, "cpu" or another."""
        spent: dict[str, Any] = {
            "step": step,
            "samples": self.samples,
            "cpu_seconds": round(self._cpu_before + _cpu_seconds() - self._cpu_began, 3),
            "cpu_seconds_saved": round(self._saved_before + self.saved(), 3),
            "seconds": round(self._before + time.perf_counter() - self._began, 3),
            "device": device,
        }
        write_whole(folder / COST, json.dumps(spent) + "\n")


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process, of its children that run, and of those that have ended."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
