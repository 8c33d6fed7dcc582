"""What each of two processes does: `python -m tests.train.two_processes DATA OUT [key=value ...]`."""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from tests.families import attached_family
from tests.tiny import ToyPlugin
from tests.train.runs import recipe
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.plugins.registry import manager
from vpp_plugins.train import run
from vpp_plugins.train.recipe import Recipe


def main(data: Path, out: Path, changes: list[str]) -> None:
    torch.set_num_threads(1)
    manager().register(ToyPlugin(), "toy")
    model, processor = attached_family("llava")
    quiet = recipe(data, out, per_device_train_batch_size=1, ddp_backend="gloo", max_steps=6, save_steps=3)
    values = {**quiet.to_dict(), **Recipe.load(changes=["model=m", "data=d", "output_dir=o", *changes]).to_dict()}
    values |= {"model": "given", "data": str(data), "output_dir": str(out)}
    if "fsdp" in values:
        shard_on_cpus()
    run.train(Recipe.from_dict(values), model=model, processor=processor)
    total = sum(float(value.double().abs().sum()) for value in active_vpp(model).state_dict().values())
    sys.stdout.write(f"trained {total!r}\n")


def shard_on_cpus() -> None:
    """Have accelerate shard on CPUs too, where it otherwise does DDP without a word, which a run refuses."""
    real = AcceleratorState.__init__

    def sharding(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        real(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = sharding  # type: ignore[method-assign]
    run.check_sharding = lambda arguments: None  # type: ignore[assignment]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
