"""Which layers LoRA may change: the language model, the vision encoder, the projector, or all three."""

import re
from typing import Literal

from torch import nn

from vpp_plugins import plugins
from vpp_plugins.attach import host_state, is_attached, unwrap
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.plugins import Backbone

SCOPES = ("llm", "vision", "projector", "all")


def lora_targets(model: nn.Module, *, scope: str = "llm") -> str:
    """Return a pattern for peft's `LoraConfig(target_modules=...)` that matches a scope's linear layers, and no others.

    `scope` is llm, vision, projector, or all for the three.
    Works on a bare host and on an attached one, before `get_peft_model`; prompts and output head never match. A pattern
    and not a list, because peft shortens long lists to endings, and an ending may name a layer of the prompts too.

        config = LoraConfig(r=16, target_modules=lora_targets(model, scope="llm"), modules_to_save=["vpp"])

    Fused experts of mixture-of-experts hosts are no linear layers: name them in LoRA's `target_parameters`.
    Raises VPPError for an unknown scope, a host that no adapter knows, and a scope without linear layers.
    """
    if scope not in SCOPES:
        raise VPPError(f"no LoRA scope is called '{scope}'.{nearest(scope, SCOPES)} Known: {', '.join(SCOPES)}.")
    host = unwrap(model)
    backbone = host_state(host).backbone if is_attached(host) else plugins.describe(host)
    head = host.get_output_embeddings()
    wanted = SCOPES if scope == "all" else (scope,)
    patterns = {
        _any_layer(name): None  # a dict keeps the model's order
        for name, module in host.named_modules()
        if isinstance(module, nn.Linear) and module is not head and part_of(name, backbone) in wanted
    }
    if not patterns:
        raise VPPError(
            f"the scope '{scope}' holds no linear layers in this {type(host).__name__}: choose another, or mend the "
            f"projectors of the adapter '{backbone.adapter}'."
        )
    return "|".join(patterns)


def part_of(name: str, backbone: Backbone) -> Literal["llm", "vision", "projector", "vpp"]:
    """Return which part of the host a module or parameter belongs to, by its path below the host.

    A projector may lie within its vision encoder (Qwen-VL's merger does); it counts as projector.
    """
    if _below(name, "vpp"):
        return "vpp"
    if any(_below(name, path) for path in backbone.projectors):
        return "projector"
    if any(_below(name, path) for path in backbone.vision_encoders):
        return "vision"
    return "llm"


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _any_layer(name: str) -> str:
    """Return a pattern of the name in which the numbers of repeated blocks may be any."""
    return re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name))
