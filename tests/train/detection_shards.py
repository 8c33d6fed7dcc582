"""The detection loss beside a sharded model, in two processes: `python -m tests.train.detection_shards`.

Gradients, of the prompts' shards and of the heads, must be the mean of what each process would have had alone.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

from tests.ecosystem.two_processes import check_gradients, loss_of
from tests.families import attached_family, family_inputs
from tests.tiny import ToyPlugin
from vpp_plugins.data.sample import Locate, Sample
from vpp_plugins.plugins.registry import manager
from vpp_plugins.train.losses.detection import AuxiliaryDetection, named_objects


def backward(model: Any, task: AuxiliaryDetection, inputs: dict[str, Tensor], rank: int) -> None:
    count = len(inputs["vpp_pixel_values"])
    samples = [Sample("s", "a.png", 40, 24, (Locate("cup", ((4.0, 4.0, 20.0 + rank, 20.0),)),))] * count
    (loss_of(model, inputs) + task.loss(named_objects(samples))).backward()


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    manager().register(ToyPlugin(), "toy")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    alone, processor = attached_family("llava")
    inputs = family_inputs(processor, ([2, 1], [1, 1])[rank])
    model, _ = attached_family("llava")
    model.load_state_dict(alone.state_dict())

    first = AuxiliaryDetection(alone)
    backward(alone, first, inputs, rank)
    expected = {}
    for name, parameter in alone.vpp.named_parameters():
        assert parameter.grad is not None, name
        dist.all_reduce(parameter.grad)
        expected[name] = parameter.grad / 2
    first.average_gradients()

    fully_shard(model.vpp)
    fully_shard(model)
    task = AuxiliaryDetection(model)
    backward(model, task, inputs, rank)
    task.average_gradients()
    check_gradients(model.vpp, expected)
    for own, other in zip(task.parameters(), first.parameters(), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad, other.grad)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (str(Path(folder) / "store"),), nprocs=2)
    sys.stdout.write("held")
