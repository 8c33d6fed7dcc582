"""What two processes do with one attached model: `python -m tests.ecosystem.two_processes ddp llava ...`.

Each process has a batch of its own. Gradients must be the mean of what each would have had alone.
"""

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from tests.families import attached_family, family_inputs
from tests.tiny import ToyPlugin
from vpp_plugins import is_attached
from vpp_plugins.plugins.registry import manager


def loss_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits.float().square().mean()


def mean_gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What both processes' gradients are on average, worked out without a wrapper."""
    alone = copy.deepcopy(model)
    loss_of(alone, inputs).backward()
    found = {}
    for name, parameter in alone.vpp.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(gradient)
        found[name] = gradient / dist.get_world_size()
    return found


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_gradients(vpp: Any, expected: dict[str, Tensor]) -> None:
    for name, parameter in vpp.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            whole(parameter.grad), expected[name], atol=1e-6, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )
        assert expected[name].any(), name


def ddp(family: str, rank: int) -> None:
    """Both processes have images; then the second has none.

    Trainer too looks for unused parameters: bare LLaVA has some, as it does not use its last vision layer.
    """
    for layout in (([2, 1], [1, 1])[rank], ([2, 1], [0, 0])[rank]):
        model, processor = attached_family(family)
        inputs = family_inputs(processor, layout)
        expected = mean_gradients(model, inputs)
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        loss_of(wrapped, inputs).backward()
        check_gradients(model.vpp, expected)


def fsdp2(family: str, rank: int) -> None:
    """The prompts are a unit of their own, because generate calls them outside the root's forward.

    So it does the vision encoder, which only the host's weights brought together can serve.
    """
    model, processor = attached_family(family)
    inputs = family_inputs(processor, ([2, 1], [1, 1])[rank])
    expected, answer = mean_gradients(model, inputs), model.generate(**inputs, max_new_tokens=3, do_sample=False)
    fully_shard(model.vpp)
    fully_shard(model)
    assert is_attached(model)

    loss_of(model, inputs).backward()

    check_gradients(model.vpp, expected)
    model.unshard()
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False, synced_gpus=False), answer)


def work(rank: int, mode: str, families: list[str], store: str) -> None:
    torch.set_num_threads(1)
    manager().register(ToyPlugin(), "toy")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for family in families:
        {"ddp": ddp, "fsdp2": fsdp2}[mode](family, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (sys.argv[1], sys.argv[2:], str(Path(folder) / "store")), nprocs=2)
    sys.stdout.write(f"held for {' '.join(sys.argv[2:])}")
