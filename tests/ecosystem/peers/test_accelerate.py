"""`accelerate launch` with two processes, each with a batch of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ecosystem.peers.kits import ROOT
from tests.tiny import attached

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("toy")]


def test_both_processes_learn_the_same(tmp_path: Path) -> None:
    # By --cpu it starts several processes through MPI alone; --multi_gpu is torchrun, whose processes stay on the CPU
    # because the script's Accelerator says so.
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    finished = subprocess.run(
        [sys.executable, *launch.split(), "--main_process_port", "0", "-m", "tests.ecosystem.peers.launched", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{process}.pt") for process in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(not torch.equal(value, first[name]) for name, value in attached()[0].vpp.named_parameters())
