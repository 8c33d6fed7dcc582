"""PEFT and the prompts: its low-rank layers stay out of them, and prompts that it has dropped are missed."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from vpp_plugins.errors import VPPError, few


def keep_prompts_whole(host: Any) -> None:
    """Take PEFT's layers out of the prompts: `target_modules="all-linear"` puts them into every linear layer there is.

    The prompts are trained whole (`modules_to_save=["vpp"]`) or not at all, so that `save_vpp` writes all of them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [
        (parent, name, layer)
        for parent in list(host.vpp.modules())
        for name, layer in parent.named_children()
        if isinstance(layer, BaseTunerLayer) and not isinstance(parent, BaseTunerLayer)
    ]
    for parent, name, layer in wrapped:
        setattr(parent, name, layer.get_base_layer())
    if wrapped:
        warnings.warn(
            f"target_modules of a PEFT configuration match {len(wrapped)} layers of VPP, which are left as they are: "
            "the prompts train whole, by modules_to_save=['vpp'], or stay frozen, by exclude_modules=r'vpp\\..*'.",
            stacklevel=2,
        )


def refuse_dropped_prompts(host: nn.Module) -> None:
    """Raise VPPError where PEFT was to load or to save prompts that this bare host did not have."""
    configs = vars(host).get("peft_config", {})
    if dropped := [name for name, config in configs.items() if "vpp" in (vars(config).get("modules_to_save") or [])]:
        raise VPPError(
            f"the PEFT adapter '{dropped[0]}' holds VPP's weights (modules_to_save=['vpp']), but was put on a "
            f"{type(host).__name__} without VPP, where PEFT drops them silently: call attach_vpp on the host first, "
            "and PeftModel.from_pretrained or get_peft_model after that."
        )


def check_found(found: Any, folder: str | os.PathLike[str], adapter: str = "default") -> None:
    """Raise VPPError unless what transformers `found`, putting on an adapter from its folder, is all of it."""
    lacking = sorted(name for name in found.missing_and_mismatched() if adapter in name.split("."))
    check_whole(folder, lacking, sorted(name for name in found.unexpected_keys if "vpp" not in name.split(".")))


def check_whole(folder: str | os.PathLike[str], lacking: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raise VPPError for an adapter whose file lacks weights, which would stay as they began, or has some too many."""
    if lacking or others:
        counted = f"{len(lacking)} of its weights are missing" if lacking else f"{len(others)} weights are too many"
        raise VPPError(
            f"the adapter in '{folder}' does not fit its configuration or this host: {counted}, "
            f"{few(lacking or others)}. Take another copy of it, or the host that it was trained on."
        )
