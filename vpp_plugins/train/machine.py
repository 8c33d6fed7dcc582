"""What a run needs of the machine, and what this one lacks: said before anything is loaded."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from vpp_plugins.errors import VPPError
from vpp_plugins.files import is_hub_id, local_folder
from vpp_plugins.train.model import POCKET
from vpp_plugins.train.recipe import NO_PROMPTS, Recipe

BYTES = {"float32": 4.0, "float64": 8.0, "bfloat16": 2.0, "float16": 2.0, "auto": 2.0}
FOUR_BITS = 0.65  # bytes of a number, with its scales and what stays whole
TRAINED = 16  # bytes of each number that is trained: float32 weights, gradients and AdamW's two
PROMPTS = 65e6  # numbers of both prompts, with DETR on ResNet-101
LORA = 0.023 / 64  # numbers of LoRA on all linear layers of a language model, of each number and rank
TOKENS = 1500  # of a sample: an image and a few turns
H100 = 4e14  # operations a second, as training reaches them


def check_machine(recipe: Recipe) -> None:
    """Raise VPPError where this machine cannot run the recipe, with what to set instead; nothing is loaded."""
    on_cpu = bool(recipe.trainer.get("use_cpu"))
    if recipe.trainer.get("bf16") and not on_cpu and not _has_bf16():
        raise VPPError(
            "the recipe says bf16 = true, but no GPU here computes in bfloat16: run it where one is; here, "
            "--set use_cpu=true trains on the CPU, and `vpp train RECIPE --dry-run` tries all of it in little."
        )
    if recipe.load_in_4bit and find_spec("bitsandbytes") is None:
        raise VPPError("load_in_4bit needs bitsandbytes: pip install bitsandbytes, or --set load_in_4bit=false.")
    if recipe.model == POCKET:
        return
    needed, there = weights_bytes(recipe), _memory(on_cpu=on_cpu)
    if needed is not None and needed > there and not {"fsdp", "deepspeed"} & recipe.trainer.keys():
        raise VPPError(
            f"the weights of '{recipe.model}' alone take about {needed / 1e9:.0f} GB, and here are {there / 1e9:.0f} "
            "GB: take a smaller model, or set load_in_4bit=true, dtype=bfloat16 or, on several GPUs, fsdp."
        )
    detector = detector_weights(recipe)
    if detector is not None and is_hub_id(detector):
        _check_at_hand("local_vpp.weights", detector, "or to none, which begins with a detector at random")
    if is_hub_id(recipe.model):
        _check_at_hand("model", recipe.model, "or try the recipe without it by `vpp train RECIPE --dry-run`")


def detector_weights(recipe: Recipe) -> str | None:
    """Return which detector weights the recipe begins with, or None."""
    if recipe.vpp is not None or not isinstance(recipe.local_vpp, Mapping):
        return None
    return recipe.local_vpp.get("weights")


def forecast(recipe: Recipe, samples: int) -> list[str]:
    """Return which weights, how much memory and time the recipe will take on its samples, as far as can be reckoned."""
    detector = detector_weights(recipe)
    named = [recipe.model, *([] if detector is None else [detector])]
    said = [f"Weights: {', '.join(named)}."]
    count, weights = parameters(recipe.model), weights_bytes(recipe)
    if count is None or weights is None:
        return [*said, f"Memory and time: not reckoned, as the name '{recipe.model}' does not say how large it is."]
    trained = count if recipe.lora_scope is None and "llm" not in recipe.freeze else 0.0
    if recipe.lora_scope is not None:
        trained += LORA * recipe.lora_r * count
    trained += 0 if recipe.vpp == NO_PROMPTS else PROMPTS
    steps, batch = int(recipe.trainer.get("max_steps", -1)), int(recipe.trainer.get("per_device_train_batch_size", 8))
    seen = samples * float(recipe.trainer.get("num_train_epochs", 3))
    if steps > 0:
        seen = steps * batch * int(recipe.trainer.get("gradient_accumulation_steps", 1))
    hours = (6 if trained >= count else 4) * count * TOKENS * seen / H100 / 3600
    said.append(
        f"Memory: about {weights / 1e9:.1f} GB of weights, {TRAINED * trained / 1e9:.1f} GB for {trained / 1e6:,.0f} "
        f"million numbers that learn, and the activations of {batch} samples."
    )
    said.append(
        f"Time: about {hours:.1f} hours on one H100 for {seen:,.0f} samples of {TOKENS:,} tokens; reckoned, not "
        "measured."
    )
    return said


def parameters(model: str) -> float | None:
    """Return how many numbers a model has, from its files where it lies here, or its name; None where neither says."""
    found = [*Path(model).glob("*.safetensors")] if Path(model).is_dir() else []
    if found:
        return sum(path.stat().st_size for path in found) / 2
    named = re.findall(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[Bb](?![A-Za-z\d])", model)
    return float(named[-1]) * 1e9 if named else None


def weights_bytes(recipe: Recipe) -> float | None:
    """Return the bytes of the host's weights as loaded, or None where nothing says how large it is."""
    count = parameters(recipe.model)
    if count is None:
        return None
    return count * (FOUR_BITS if recipe.load_in_4bit else BYTES.get(recipe.dtype, 2.0))


def _has_bf16() -> bool:
    if not torch.accelerator.is_available():
        return False
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported()


def _memory(*, on_cpu: bool) -> float:
    if on_cpu or not torch.cuda.is_available():
        return float(psutil.virtual_memory().total)
    return float(torch.cuda.get_device_properties(0).total_memory)


def _check_at_hand(key: str, name: str, otherwise: str) -> None:
    """Raise VPPError for a name that is neither in the hub's cache nor reachable; no weights are fetched."""
    try:
        local_folder(name, files=["config.json"], expected="a folder")
    except VPPError as error:
        raise VPPError(f"{key}: {error} Set {key} to a folder that has it, {otherwise}.") from None
