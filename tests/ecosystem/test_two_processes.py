"""VPP trained by two processes: DistributedDataParallel and FSDP2, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAMILIES = ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"]
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_gradients_are_the_mean_of_both_processes(mode: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.ecosystem.two_processes", mode, *FAMILIES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stdout.split()[-len(FAMILIES) :] == FAMILIES
