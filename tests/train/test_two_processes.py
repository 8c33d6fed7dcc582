"""Two processes on the CPU whose batches differ: one may have pictures while the other has none."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.runs import samples, write_data

ROOT = Path(__file__).parents[2]
TEXT_ONLY = [1, 2, 5, 6, 8, 11]


def launch(data: Path, out: Path, *changes: str) -> list[str]:
    """Run two processes as torchrun does; returns what each printed. A hang fails after two minutes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.two_processes", str(data), str(out), *changes],
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        finished = [process.communicate(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, finished, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [output.splitlines()[-1] for output, _ in finished]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("unused", ["true", "false"], ids=["finding unused parameters", "not finding them"])
def test_text_alone_beside_pictures_does_not_hang(unused: str, tmp_path: Path) -> None:
    """Without the search for unused parameters, one that takes no part would make the processes wait for ever.

    LLaVA does not use its last vision layer, so there the vision encoder keeps its weights.
    """
    data = write_data(tmp_path / "data", samples(12, text_only=TEXT_ONLY))
    frozen = [] if unused == "true" else ['freeze=["vision"]']

    first, second = launch(data, tmp_path / "run", f"ddp_find_unused_parameters={unused}", *frozen)

    assert first == second
    assert (tmp_path / "run/final/vpp.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_resume_to_the_bit(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(12, text_only=TEXT_ONLY))
    launch(data, tmp_path / "whole")
    launch(data, tmp_path / "two")
    (tmp_path / "two/checkpoint-6").rename(tmp_path / "away")
    (tmp_path / "two/final").rename(tmp_path / "gone")

    launch(data, tmp_path / "two", "resume_from_checkpoint=auto")

    expected, found = (load_file(tmp_path / name / "final/vpp.safetensors") for name in ("whole", "two"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
