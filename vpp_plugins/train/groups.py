"""Named parameter groups: which part of a model learns, and how fast.

The parts are those of a VPP host: the language model and what is left of it, its LoRA, the projector and the vision
encoder, as its adapter names them, and the three parts of the prompts. `lora_targets` finds LoRA's layers by the same.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from vpp_plugins import plugins
from vpp_plugins.attach import active_vpp, host_state, is_attached, unwrap
from vpp_plugins.errors import VPPError, known_name
from vpp_plugins.plugins import Backbone
from vpp_plugins.train.recipe import PARTS

SCOPES = ("llm", "vision", "projector", "all")
"""Where LoRA may go."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """How one part of the model is trained."""

    lr: float
    """Learning rate."""
    vector_lr: float | None = None
    """Learning rate of its vectors, that is biases and the scales of norms; None is `lr`."""
    weight_decay: float = 0.0
    """AdamW's weight decay; vectors never decay."""
    freeze: bool = False
    """Whether it keeps its weights."""
    schedule: str | None = None
    """How its rate goes over the steps, by transformers' names; None is as the run's `lr_scheduler_type` says."""


_REFERENCE: Mapping[str, Part] = MappingProxyType(
    {
        "llm": Part(lr=2e-5),
        "lora": Part(lr=2e-4),
        "projector": Part(lr=2e-5),
        "vision": Part(lr=2e-6),
        "vpp.global": Part(lr=2e-4),
        "vpp.local": Part(lr=1e-5, vector_lr=2e-5),
        "vpp.projector": Part(lr=2e-4, vector_lr=2e-5),
    }
)
_PAPER: Mapping[str, Part] = MappingProxyType(
    {**_REFERENCE, "vpp.local": Part(lr=2e-5), "vpp.projector": Part(lr=2e-4)}
)
PRESETS: Mapping[str, Mapping[str, Part]] = MappingProxyType({"reference": _REFERENCE, "paper": _PAPER})
"""Learning rates for AdamW with betas 0.9 and 0.999, eps 1e-8, no weight decay, cosine schedule, 3% warm-up.

reference: what the code of VPP-LLaVA does, parameter by parameter, as recorded by running it. It names the weights of
  DETR (1e-5) and of its projector (2e-4), and so leaves their biases and norms at the base rate, 2e-5.
paper: 2e-5 for all of DETR and 2e-4 for all of its projector, the rest as above. Second-hand: the names of the
  reference's own runs say "detr_2e-5", the paper itself was not at hand.

VPP-LLaVA has no LoRA; its rate is the one customary for LLaVA.
"""


def choose_parts(
    preset: str = "reference",
    *,
    freeze: Collection[str] = (),
    lr: Mapping[str, float] | None = None,
    schedule: Mapping[str, str] | None = None,
) -> dict[str, Part]:
    """Return a preset with some parts frozen, and with other learning rates, vectors included, or schedules for some.

        choose_parts("reference", freeze=["vision"], lr={"vpp.local": 1e-4})

    Raises VPPError for a preset or part that does not exist.
    """
    rates, schedules = lr or {}, schedule or {}
    parts = dict(PRESETS[known_name(preset, PRESETS, "preset")])
    changes: list[tuple[str, dict[str, Any]]] = [
        *((name, {"lr": rate, "vector_lr": None}) for name, rate in rates.items()),
        *((name, {"schedule": kind}) for name, kind in schedules.items()),
        *((name, {"freeze": True}) for name in freeze),
    ]
    for name, change in changes:
        parts[name] = replace(parts[known_name(name, PARTS, "part")], **change)
    return parts


def parameter_groups(model: nn.Module, parts: Mapping[str, Part]) -> list[dict[str, Any]]:
    """Freeze the parts that are to be frozen, and return torch's parameter groups of what learns.

    Each group has `params`, `lr`, `weight_decay`, its part's name as `name`, and its `schedule`; vectors that differ in
    rate or decay have a group of their own, called "... vectors". The model is attached; PEFT and other wrappers are
    looked through. Parts of the host that are not frozen stay as they are, so PEFT's choice stands. The prompts are
    switched on, as PEFT freezes all that it does not know.

    Raises VPPError if a part that has parameters to train is not among `parts`, if one parameter belongs to two parts,
    or if nothing is left to train.
    """
    for name in parts:
        known_name(name, PARTS, "part")
    groups: dict[str, dict[str, Any]] = {}
    owners: dict[int, tuple[str, str]] = {}
    for name, part, parameter in _placed(model):
        first_name, owner = owners.setdefault(id(parameter), (name, part))
        if owner != part:
            raise VPPError(
                f"'{first_name}' and '{name}' are one parameter, but belong to '{owner}' and '{part}': untie them, or "
                "mend the paths that the adapter names."
            )
        if part in parts and parts[part].freeze:
            parameter.requires_grad_(False)
        elif part.startswith("vpp."):
            parameter.requires_grad_(True)
        if not parameter.requires_grad or name != first_name:
            continue
        if part not in parts:
            raise VPPError(f"'{name}' is to be trained, but no learning rate is given for its part '{part}': add it.")
        group = _group_of(part, parts[part], vector=parameter.ndim < 2)
        groups.setdefault(group["name"], group)["params"].append(parameter)
    if not groups:
        raise VPPError(f"nothing is left to train: every part of this {type(unwrap(model)).__name__} is frozen.")
    return list(groups.values())


def lora_targets(model: nn.Module, *, scope: str = "llm", first_layer: int = 0) -> str:
    """Return a pattern for peft's `LoraConfig(target_modules=...)` that matches a scope's linear layers, and no others.

    `scope` is llm, vision, projector, or all for the three. Of the language model's layers those before `first_layer`
    are left out: where nothing before them learns, the backward pass ends there.
    Works on a bare host and on an attached one, before `get_peft_model`; prompts and output head never match. A pattern
    and not a list, because peft shortens long lists to endings, and an ending may name a layer of the prompts too.

        config = LoraConfig(r=16, target_modules=lora_targets(model, scope="llm"), modules_to_save=["vpp"])

    Fused experts of mixture-of-experts hosts are no linear layers: name them in LoRA's `target_parameters`.
    Raises VPPError for an unknown scope, a host that no adapter knows, and a scope without linear layers.
    """
    known_name(scope, SCOPES, "LoRA scope")
    host = unwrap(model)
    backbone = host_state(host).backbone if is_attached(host) else plugins.describe(host)
    head = host.get_output_embeddings()
    wanted = SCOPES if scope == "all" else (scope,)
    chosen = {
        name: part
        for name, module in host.named_modules()
        if isinstance(module, nn.Linear) and module is not head and (part := part_of(name, backbone)) in wanted
    }
    if first_layer:
        chosen = {name: part for name, part in chosen.items() if part != "llm" or _layer(name) >= first_layer}
        if "llm" not in chosen.values():
            raise VPPError(
                f"LoRA from layer {first_layer} of the language model on has nothing to act on in this "
                f"{type(host).__name__}: choose an earlier layer, and a scope with the language model."
            )
    patterns = dict.fromkeys(re.escape(name) if first_layer else _any_layer(name) for name in chosen)
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
    return "vision" if any(_below(name, path) for path in backbone.vision_encoders) else "llm"


def _group_of(name: str, part: Part, *, vector: bool) -> dict[str, Any]:
    """Return the empty group that a parameter of the part goes to."""
    vector_lr = part.lr if part.vector_lr is None else part.vector_lr
    if not vector or (vector_lr == part.lr and not part.weight_decay):
        decay, rate, shown = part.weight_decay, part.lr, name
    else:
        decay, rate, shown = 0.0, vector_lr, f"{name} vectors"
    return {"name": shown, "params": [], "lr": rate, "weight_decay": decay, "schedule": part.schedule}


def _placed(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Give every parameter with the part that it belongs to; tied ones come under each of their names."""
    host, backbone = unwrap(model), host_state(model).backbone
    prompts = {id(parameter) for parameter in active_vpp(host).parameters()}
    for name, parameter in host.named_parameters(remove_duplicate=False):
        if not name.startswith("vpp.") or id(parameter) in prompts:  # PEFT keeps untrained twins of the prompts
            yield name, _part_of(name, backbone), parameter
    inside = {id(parameter) for parameter in host.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:  # a head that a wrapper brought, such as a value head
            yield name, "llm", parameter


def _part_of(name: str, backbone: Backbone) -> str:
    if "lora_" in name:
        return "lora"
    part = part_of(name, backbone)
    if part != "vpp":
        return part
    if ".global_prompt." in name:
        return "vpp.global"
    return "vpp.local" if ".local_prompt.generator." in name else "vpp.projector"


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _layer(name: str) -> int:
    """Return which layer a module is in, -1 where its name has no number."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _any_layer(name: str) -> str:
    """Return a pattern of the name in which the numbers of repeated blocks may be any."""
    return re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name))
