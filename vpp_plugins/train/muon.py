"""Muon for the matrices of linear layers, AdamW for all else: fewer steps where a model starts from random weights.

Jordan et al., 2024; with the update's size matched to AdamW's (Liu et al., 2025, arXiv 2502.16982), so that rates and
decay mean what they mean there.
"""

from typing import Any

import torch
from torch import nn

from vpp_plugins.attach import unwrap

MUON = "muon"
"""The recipe's `optim` for it."""
ADAMW_SHARE = 0.5
"""AdamW's rate as a share of the part's; both have Nesterov's momentum."""


def muon_groups(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups, each part's linear layers apart from what AdamW takes: vectors, convolutions, embeddings."""
    host: Any = unwrap(model)
    tables = {id(table.weight) for table in (host.get_input_embeddings(), host.get_output_embeddings()) if table}
    linear = {id(module.weight) for module in host.modules() if isinstance(module, nn.Linear)} - tables
    split = []
    for group in groups:
        matrices = [parameter for parameter in group["params"] if id(parameter) in linear]
        others = [parameter for parameter in group["params"] if id(parameter) not in linear]
        if matrices:
            split.append({**group, "params": matrices, "use_fallback": False})
        if others:
            name = f"{group['name']} by AdamW" if matrices else group["name"]
            split.append({**group, "name": name, "params": others, "use_fallback": True, "weight_decay": 0.0})
    return split


def build_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return timm's Muon over `muon_groups`."""
    from timm.optim.muon import Muon

    rates: dict[str, Any] = {"adjust_lr_fn": "match_rms_adamw", "fallback_lr_scale": ADAMW_SHARE}
    optimizer: torch.optim.Optimizer = Muon(groups, nesterov=True, betas=(0.9, 0.95), **rates)
    return optimizer
