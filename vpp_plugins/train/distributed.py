"""FSDP and DeepSpeed: what cannot be sharded, what is sharded as a unit, and the model brought together to be asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.training_args import ParallelMode

from vpp_plugins.attach import unwrap
from vpp_plugins.errors import VPPError
from vpp_plugins.prompts import VPP
from vpp_plugins.train.losses import ANSWERS
from vpp_plugins.train.optim import MUON
from vpp_plugins.train.recipe import Recipe


def shard_by_units(arguments: Any, model: nn.Module) -> None:
    """Have FSDP shard the layers that the host's family names, and the prompts; a recipe's own choice stands.

    The prompts are a unit because `generate` calls them outside the model's forward. Families name layers of models
    that they are only built from, such as CLIP's text tower, and accelerate stops at one that is not there.
    """
    chosen = arguments.fsdp_plugin_args
    if chosen is None or "transformer_cls_names_to_wrap" in chosen:
        return
    host = unwrap(model)
    there = {type(module).__name__ for module in host.modules()}
    units = sorted(set(host._no_split_modules or ()) & there)
    chosen["transformer_cls_names_to_wrap"] = ",".join([*units, VPP.__name__])


def check_sharding(arguments: Any) -> None:
    """Raise VPPError where FSDP is asked for with one process, or on CPUs, where accelerate would quietly do DDP."""
    if not arguments.fsdp:
        return
    if arguments.parallel_mode != ParallelMode.DISTRIBUTED:
        raise VPPError(
            "fsdp shares the model among several processes, but one was started: launch it by torchrun "
            "--nproc_per_node N -m vpp_plugins.cli train ..., or --set fsdp=''."
        )
    if arguments.device.type == "cpu":
        raise VPPError("fsdp shards over GPUs alone, but this run is on CPUs: --set fsdp='' copies the model to each.")


def check_whole(arguments: Any, recipe: Recipe) -> None:
    """Raise VPPError where FSDP or DeepSpeed would take weights, or the optimizer, from what needs them whole."""
    sharding = "DeepSpeed" if arguments.deepspeed_plugin else "FSDP" if arguments.fsdp else None
    if sharding is None:
        return
    asked = {
        'optim = "muon"': recipe.trainer.get("optim") == MUON,
        **{f"the loss '{name}'": name != ANSWERS for name in recipe.loss_weights()},
        "average_weights": recipe.average_weights,
    }
    for key, wanted in asked.items():
        if wanted:
            raise VPPError(
                f"{key} needs each weight whole, but {sharding} shards them: train with DDP, or leave it out."
            )
    settings = arguments.deepspeed_plugin.deepspeed_config if arguments.deepspeed_plugin else {}
    if own := [name for name in ("optimizer", "scheduler") if name in settings]:
        raise VPPError(
            f"the DeepSpeed file has {' and '.join(own)} of its own, which would replace the rates and "
            "schedules of the parts: leave them out of it and say them in the recipe."
        )


@contextmanager
def whole_weights(model: Any, *, reshard_after_forward: bool) -> Iterator[None]:
    """Hold all of a model that FSDP2 shards in every process, so that each can generate at its own pace.

    Afterwards its units gather and free their weights again as before, freed after forward or not. A model that nothing
    shards stays as it is.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not units:
        yield
        return
    generate = model.generate
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    model.generate = partial(generate, synced_gpus=False)  # it would wait for the others after each token
    try:
        yield
    finally:
        model.generate = generate
        for unit in units:
            unit.set_reshard_after_forward(reshard_after_forward and unit is not model, recurse=False)
            unit.reshard()
