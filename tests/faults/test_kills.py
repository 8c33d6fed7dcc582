"""A hundred SIGKILLs at random moments, over all long work: each is begun again until done, and ends identical."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KILLS, SEED = 100, 0
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_change_nothing(record_property: Callable[[str, object], None]) -> None:
    """In a process that never trains itself: threads of autograd do not survive a fork."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killing", str(KILLS), str(SEED)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    for line in lines:
        record_property("kills", line)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert f" {KILLS} kills" in lines[-1]
