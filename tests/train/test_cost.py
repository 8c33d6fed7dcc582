"""Snapshots, and what a run has cost by then."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.families import attached_family
from tests.train.runs import recipe, samples, write_data
from vpp_plugins.train.cost import Cost
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")


def run(data: Path, out: Path, **changes: Any) -> None:
    model, processor = attached_family("llava")
    train(recipe(data, out, save_steps=1, **changes), model=model, processor=processor)


def cost(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "cost.json").read_text())
    return values


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def same(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / "vpp.safetensors") for folder in (a, b))
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_snapshots_are_the_weights_of_their_step(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(8))
    run(data, tmp_path / "run", snapshots=[1, 3], save_total_limit=1)
    run(data, tmp_path / "again")

    assert [path.name for path in sorted(tmp_path.glob("run/step-*"))] == ["step-1", "step-3"]
    for step in (1, 3):
        assert same(tmp_path / f"run/step-{step}", tmp_path / f"again/checkpoint-{step}")
    assert not same(tmp_path / "run/step-3", tmp_path / "run/final")
    assert same(tmp_path / "run/final", tmp_path / "again/final")


def test_a_snapshot_has_the_average_where_one_is_kept(tmp_path: Path) -> None:
    run(write_data(tmp_path / "data", samples(8)), tmp_path / "run", snapshots=[4], average_weights=0.9)

    assert same(tmp_path / "run/step-4", tmp_path / "run/final")
    assert not same(tmp_path / "run/step-4", tmp_path / "run/checkpoint-4")


def test_the_cost_goes_on_where_the_run_does(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(8))
    run(data, tmp_path / "run", max_steps=2, snapshots=[1, 3])
    first = [cost(tmp_path / "run" / name) for name in ("step-1", "checkpoint-1", "checkpoint-2", "final")]
    assert [(one["step"], one["samples"], one["device"]) for one in first] == [
        (step, 2 * step, "cpu") for step in (1, 1, 2, 2)
    ]
    assert 0 < first[0]["cpu_seconds"] <= first[1]["cpu_seconds"] <= first[2]["cpu_seconds"]
    (tmp_path / "run/checkpoint-2/cost.json").unlink()  # not in its manifest: it is refused
    with pytest.raises(ValueError, match=r"cost\.json' is missing"):
        run(data, tmp_path / "run", resume_from_checkpoint="auto", snapshots=[1, 3])
    last = tmp_path / "run/checkpoint-1"

    run(data, tmp_path / "run", resume_from_checkpoint=str(last), snapshots=[1, 3])

    then = cost(tmp_path / "run/step-3")
    assert (then["step"], then["samples"]) == (3, 6)
    assert then["cpu_seconds"] > cost(last)["cpu_seconds"]
    assert then["seconds"] > cost(last)["seconds"]


def test_processes_that_were_started_are_counted(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    counted = Cost()
    counted.begin()
    spin(0.2)
    subprocess.run([sys.executable, "-c", busy], input=b"\n", stdout=subprocess.PIPE, check=True)
    running = subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.readline()

    counted.write(tmp_path, 1, "cpu")

    running.communicate(b"\n")
    assert cost(tmp_path)["cpu_seconds"] >= 1.15
