"""What SmolLM2 learned, as shipped: the difference to the host that `vpp fetch smollm2` writes, a file an arm.

plain.safetensors      the arm without VPP: projector and LoRA
vpp.safetensors        the arm with VPP, likewise; its prompts' tensors start with "vpp."
vpp_config.json        what was attached
README.md              the card of the run with VPP
manifest.json          sizes and SHA-256 of all of them

Matrices have eight bits a number and a scale a row, all else is float16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins.attach import attach_vpp, is_attached
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError, few
from vpp_plugins.files import check_tensors, check_weights_listed, write_manifest
from vpp_plugins.pocket.smollm2 import DEFAULT_FOLDER, check_fetched
from vpp_plugins.pocket.vision import register_pocket
from vpp_plugins.pocket.weights import arm_file, read_shipped, shipped_file
from vpp_plugins.processor import VPPProcessor

SMOLLM2_FOLDER = Path(__file__).with_name("weights-smollm2")
WHOSE = "SmolLM2"
LEARNED = ("model.multi_modal_projector.", "vpp.")
"""How the names of the tensors begin that are shipped as they are; what else differs from the host is LoRA."""
DOWN, UP, SCALE = ".lora_A", ".lora_B", ".scale"
"""How names end: of LoRA's two factors, beside the layer's name, and of the scales of a matrix's rows."""


def load_smollm2(
    vpp: bool, folder: str | Path = SMOLLM2_FOLDER, host: str | Path = DEFAULT_FOLDER
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor | VPPProcessor]:
    """Return an arm in float32, as `load_pocket` does, LoRA added to the weights of `host`."""
    check_fetched(host)
    held = _from_rows(read_shipped(folder, arm_file(vpp), WHOSE))
    config = VPPConfig.load(shipped_file(folder, "vpp_config.json", WHOSE)) if vpp else None
    register_pocket()
    check_weights_listed(Path(host))
    model: Any = LlavaForConditionalGeneration.from_pretrained(host, dtype=torch.float32).eval()
    processor: Any = LlavaProcessor.from_pretrained(host)
    if config is not None:
        attach_vpp(model, config)
        model.vpp.trained = True
        processor = VPPProcessor(processor, model)
    state = model.state_dict()
    lora = {name.removesuffix(DOWN): held.pop(name) for name in list(held) if name.endswith(DOWN)}
    added = {f"{layer}.weight": held.pop(layer + UP) @ down for layer, down in lora.items()}
    expected = {name: value for name, value in state.items() if name in added or name.startswith(LEARNED)}
    learned = held | {name: state[name] + value for name, value in added.items() if name in state}
    check_tensors(learned, expected, f"{WHOSE}'s weight file", advice="Install the library again, or train anew.")
    model.load_state_dict(learned, strict=False)
    return model, processor


@torch.no_grad()
def save_smollm2(model: Any, folder: str | Path, host: str | Path = DEFAULT_FOLDER) -> None:
    """Write one arm, the one with VPP where it is attached; LoRA must not be merged yet.

    Raises VPPError where anything else than projector, LoRA and prompts differs from the fetched `host`.
    """
    from peft.tuners.lora import LoraLayer

    check_fetched(host)
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    register_pocket()
    before = LlavaForConditionalGeneration.from_pretrained(host, dtype=torch.float32).state_dict()
    state = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    state = {name: value for name, value in state.items() if ".lora_" not in name}
    others = [
        name
        for name, value in state.items()
        if not name.startswith(LEARNED) and not torch.equal(value.float().cpu(), before[name])
    ]
    if others:
        raise VPPError(
            f"of this model {len(others)} weights differ from '{host}' that are not shipped: {few(others)}. Ship what "
            "smollm2-lora.toml trained."
        )
    held = {name: value for name, value in state.items() if name.startswith(LEARNED)}
    for name, layer in layers.items():
        (adapter,) = layer.active_adapters
        held[name + DOWN] = layer.lora_A[adapter].weight
        held[name + UP] = layer.lora_B[adapter].weight * layer.scaling[adapter]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    attached = is_attached(model)
    save_file(_to_rows(held), folder / arm_file(attached))
    if attached:
        model.vpp.config.save(folder / "vpp_config.json")
    write_manifest(folder)


def _to_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return matrices as int8 with the scales of their rows beside them, and all else as float16."""
    packed = {}
    for name, value in tensors.items():
        value = value.detach().float().cpu()
        if value.dim() != 2:
            packed[name] = value.half().contiguous()
            continue
        scale = value.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        packed[name] = (value / scale).round().to(torch.int8).contiguous()
        packed[name + SCALE] = scale
    return packed


def _from_rows(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `_to_rows`, in float32."""
    scales = {name: value for name, value in packed.items() if name.endswith(SCALE)}
    return {
        name: value.float() * scales[name + SCALE] if name + SCALE in scales else value.float()
        for name, value in packed.items()
        if name not in scales
    }
