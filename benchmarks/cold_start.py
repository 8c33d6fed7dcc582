"""How long the command line and the import take to start, in fresh processes."""

import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.rows import Row, median_row

ALL_NAMES = """
import time
import torch
began = time.process_time()
import vpp_plugins
door = time.process_time() - began
for name in vpp_plugins.__all__:
    getattr(vpp_plugins, name)
print(door, time.process_time() - began)
"""


def measure(rounds: int = 12) -> list[Row]:
    """Return `vpp --help`, and what `import vpp_plugins` adds to `import torch`, without and with all its names used.

    Seconds are those of the processor, children included, so that other programs on the machine do not count.
    """
    vpp = [sys.executable, "-m", "vpp_plugins.cli"]  # what the command `vpp` runs
    help_seconds, door, names = [], [], []
    for _ in range(rounds):
        help_seconds.append(_of_child(lambda: subprocess.run([*vpp, "--help"], check=True, capture_output=True)))
        answer = subprocess.run([sys.executable, "-c", ALL_NAMES], check=True, capture_output=True, text=True).stdout
        first, all_of_them = map(float, answer.split())
        door.append(first)
        names.append(all_of_them)
    return [
        median_row("vpp --help", help_seconds, unit="s", bar=0.6),
        median_row("import vpp_plugins, beyond import torch", door, unit="s", bar=0.15),
        median_row("every public name of vpp_plugins, beyond import torch", names, unit="s"),
    ]


def _of_child(run: Callable[[], object]) -> float:
    before = time.process_time(), sum(_children())
    run()
    return sum(_children()) - before[1] + time.process_time() - before[0]


def _children() -> tuple[float, float]:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime
