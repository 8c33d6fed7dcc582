"""The weights in a run's checkpoints: the host's, whole, the prompts', gathered, and the vocabulary's added rows."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vpp_plugins.attach import host_state
from vpp_plugins.errors import VPPError


def read_host(host: nn.Module, folder: Path) -> None:
    """Load a checkpoint's host, all of it: Trainer would only warn of names that do not match, and go on without."""
    own = {name: value for name, value in host.state_dict().items() if not name.startswith("vpp.")}
    loaded: set[int] = set()
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = load_file(path)
        unknown = sorted(tensors.keys() - own.keys())
        if unknown:
            raise VPPError(f"'{path}' holds {len(unknown)} tensors that the model has not, {unknown[0]} for one.")
        host.load_state_dict(tensors, strict=False)
        loaded |= {own[name].data_ptr() for name in tensors}
    missing = [name for name, value in own.items() if value.data_ptr() not in loaded]  # a tied head is its embedding
    if missing:
        raise VPPError(f"'{folder}' lacks {len(missing)} of the host's tensors, {missing[0]} for one: it is not whole.")


def gathered_prompts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the prompts of a whole model's state, PEFT's wrapper looked through."""
    found = ((re.fullmatch(r"(?:base_model\.model\.)?vpp\.(.+)", name), value) for name, value in state.items())
    return {match[1]: value for match, value in found if match}


def check_weights(folder: Path) -> None:
    """Raise VPPError where prompts were saved empty, as they are where nobody gathered them from several devices."""
    empty = [name for name, value in load_file(folder / "vpp.safetensors").items() if not value.numel()]
    if empty:
        raise VPPError(f"{len(empty)} tensors of the prompts were saved empty, {empty[0]} for one: gather them first.")


def added_rows(host: Any) -> dict[str, Tensor]:
    """Return the rows that `<|vpp|>` added to the vocabulary's tables, by their names; {} where there are none."""
    rows = host_state(host).host_rows
    if rows is None:
        return {}
    return {name: table.detach()[rows:].cpu().clone() for name, table in _tables(host).items()}


def put_rows(host: Any, saved: dict[str, Tensor]) -> None:
    """Put rows that `added_rows` returned back."""
    rows = host_state(host).host_rows
    with torch.no_grad():
        for name, table in _tables(host).items():
            table[rows:] = saved[name].to(table)


def _tables(host: Any) -> dict[str, nn.Parameter]:
    """Return the vocabulary's tables by a name each; a tied head is the embedding itself."""
    head = host.get_output_embeddings()
    tables = {"embedding": host.get_input_embeddings().weight}
    return tables if head is None or head.weight is tables["embedding"] else {**tables, "head": head.weight}
