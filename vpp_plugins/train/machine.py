"""What a run needs of the machine, and what this one lacks: said before anything is loaded."""

import math
import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from vpp_plugins import plugins
from vpp_plugins.attach import CONFIG_FILE
from vpp_plugins.config import LocalVPPConfig, VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.files import is_hub_id, local_folder, safetensors_shapes
from vpp_plugins.plugins import build_generator
from vpp_plugins.train.groups import part_of
from vpp_plugins.train.model import POCKET, empty_host, projector_learns_whole, prompt_changes, settings_of
from vpp_plugins.train.recipe import NO_PROMPTS, Recipe

BYTES = {"float32": 4.0, "float64": 8.0, "bfloat16": 2.0, "float16": 2.0, "auto": 2.0}
FOUR_BITS = 0.65  # bytes of a number, with its scales and what stays whole
TRAINED = 16  # bytes of each number that is trained: float32 weights, gradients and AdamW's two
DETECTOR = 60e6, 256  # numbers of a detector that is not here, and its queries' width: those of DETR on ResNet-101
WIDTH = 4096  # of a language model of some billion numbers
VISION = 3e8, 1024  # numbers of a vision encoder, and its width: those of ViT-L
LORA = 0.023 / 64  # numbers of LoRA on all linear layers of a language model, of each number and rank
VISION_LORA = 24 * 18 * 1024  # numbers of LoRA on all linear layers of ViT-L, of each rank
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
    if recipe.trainer.get("bf16") and on_cpu and torch.backends.cpu.get_cpu_capability() == "AVX2":
        warnings.warn(
            "the recipe says bf16 = true, but this CPU has no instructions for bfloat16: where that was measured, "
            "products of matrices took seven times as long as in float32. --set bf16=false --set dtype=float32",
            stacklevel=2,
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
        _check_at_hand(
            "model",
            recipe.model,
            "make one as the recipe's first lines say, or try the recipe without: `vpp train RECIPE --dry-run`",
        )


def detector_weights(recipe: Recipe) -> str | None:
    """Return which detector weights the recipe begins with, or None."""
    if recipe.vpp is not None or not isinstance(recipe.local_vpp, Mapping):
        return None
    return recipe.local_vpp.get("weights")


def forecast(recipe: Recipe, samples: int, whole: nn.Module | None = None, speed: float = 0.0) -> list[str]:
    """Return which weights, how much memory and time the recipe will take on its samples, as far as can be reckoned.

    Where the model is small enough to be tried itself, `whole` is that, attached, with what is frozen frozen, and
    `speed` how many samples a second this machine has trained it on.
    """
    detector = detector_weights(recipe)
    named = [recipe.model, *([] if detector is None else [detector])]
    said = [f"Weights: {', '.join(named)}."]
    count = parameters(recipe.model) if whole is None else _size(whole)
    if count is None:
        return [*said, f"Memory and time: not reckoned, as the name '{recipe.model}' does not say how large it is."]
    trained = _trained(recipe, count) if whole is None else _size(whole, learning=True)
    memory = f"{_bytes(count * _number_bytes(recipe))} of weights, {_bytes(TRAINED * trained)} for {_amount(trained)}"
    said.append(f"Memory: about {memory} numbers that learn, and the activations of {_batch(recipe)} samples.")
    seen = _seen(recipe, samples)
    if speed:
        took = f"{_duration(seen / speed)} here for {seen:,.0f} samples, at {speed:.3g} a second as tried"
    elif recipe.trainer.get("use_cpu"):
        took = "not reckoned for a CPU; the recipe's first lines may say what was measured"
    else:
        operations = (6 if trained >= count else 4) * count * TOKENS * seen
        took = f"{_duration(operations / H100)} on one H100 for {seen:,.0f} samples of {TOKENS:,} tokens; not measured"
    return [*said, f"Time: {took}."]


def _trained(recipe: Recipe, count: float) -> float:
    """Return how many numbers learn where the host has so many."""
    return _learning_host(recipe, count) + (0.0 if recipe.vpp == NO_PROMPTS else _learning_prompts(recipe))


def _learning_host(recipe: Recipe, count: float) -> float:
    """Return how many numbers of the host and of its LoRA learn; a host that is not here has LLaVA's other parts."""
    (vision, vision_width), width = VISION, _width(recipe.model)
    projector = float((vision_width + width) * width)
    if recipe.lora_scope is None:
        learns = {"vision", "projector", "llm"} - {*recipe.freeze}
        sizes = {"vision": vision, "projector": projector, "llm": max(count - vision - projector, 0.0)}
        if learns and Path(recipe.model, "config.json").is_file():
            sizes = _parts(recipe)
        return sum(sizes[part] for part in learns)
    each = {
        "llm": LORA * count * _share_of_layers(recipe),
        "vision": VISION_LORA,
        "projector": vision_width + 3 * width,
    }
    lora = recipe.lora_r * (sum(each.values()) if recipe.lora_scope == "all" else each[recipe.lora_scope])
    return lora + (projector if projector_learns_whole(recipe) else 0.0)


def _parts(recipe: Recipe) -> dict[str, float]:
    """Return how many numbers each part of a host has that lies here; no weights are read."""
    host, _ = empty_host(recipe)
    backbone, sizes = plugins.describe(host), dict.fromkeys(("vision", "projector", "llm"), 0.0)
    for name, parameter in host.named_parameters():
        sizes[part_of(name, backbone)] += parameter.numel()
    return sizes


def _learning_prompts(recipe: Recipe) -> float:
    """Return how many numbers of the recipe's prompts learn."""
    if recipe.vpp is not None and Path(recipe.vpp, CONFIG_FILE).is_file():
        config = VPPConfig.load(Path(recipe.vpp, CONFIG_FILE))
    else:
        config = VPPConfig().changed(prompt_changes(recipe))
    learns = {f"vpp.{part}" for part in ("global", "local", "projector")} - {*recipe.freeze}
    count = 0.0
    if config.global_vpp is not None and "vpp.global" in learns:
        count += 3 * config.global_vpp.size**2
    if config.local_vpp is not None:
        own, width = _generator_size(config.local_vpp)
        count += own if "vpp.local" in learns else 0
        hidden, host_width = config.local_vpp.projector_size, _width(recipe.model)
        count += (width + 1) * hidden + (hidden + 1) * host_width if "vpp.projector" in learns else 0
    return count


def _generator_size(local: LocalVPPConfig) -> tuple[float, int]:
    """Return how many numbers of the generator can learn, and how wide its queries are; nothing is fetched."""
    if is_hub_id(str(local.generator_options.get("config", ""))):
        return DETECTOR
    with torch.random.fork_rng(devices=[]):
        generator: Any = build_generator(local.generator, local.num_queries, local.generator_options)
    return _size(generator), generator.width


def _width(model: str) -> int:
    """Return how wide a language model is, as its folder says where it lies here."""
    return _of_text(model, "hidden_size", WIDTH)


def _of_text(model: str, key: str, otherwise: int) -> int:
    settings = settings_of(Path(model))
    return int(settings.get("text_config", settings).get(key, otherwise))


def _share_of_layers(recipe: Recipe) -> float:
    """Return which share of the language model's layers gets LoRA; all, where nothing says how many there are."""
    layers = _of_text(recipe.model, "num_hidden_layers", 0)
    return max(1 - recipe.lora_first_layer / layers, 0.0) if layers else 1.0


def _size(module: nn.Module, *, learning: bool = False) -> float:
    """Return how many numbers a module has, or how many of these learn."""
    return float(sum(one.numel() for one in module.parameters() if one.requires_grad or not learning))


def _batch(recipe: Recipe) -> int:
    return int(recipe.trainer.get("per_device_train_batch_size", 8))


def _seen(recipe: Recipe, samples: int) -> float:
    """Return how many samples a run goes through, those seen again counted again."""
    steps = int(recipe.trainer.get("max_steps", -1))
    if steps > 0:
        return float(steps * _batch(recipe) * int(recipe.trainer.get("gradient_accumulation_steps", 1)))
    return samples * float(recipe.trainer.get("num_train_epochs", 3))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


def _amount(number: float) -> str:
    return f"{number / 1e6:,.0f} million" if number >= 1e7 else f"{number:,.0f}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"


def parameters(model: str) -> float | None:
    """Return how many numbers a model has, from its files where it lies here, or its name; None where neither says."""
    found = [*Path(model).glob("*.safetensors")] if Path(model).is_dir() else []
    if found:
        return float(sum(math.prod(shape) for path in found for shape in safetensors_shapes(path).values()))
    named = re.findall(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z\d])", model)
    return max((float(number) * {"b": 1e9, "m": 1e6}[unit.lower()] for number, unit in named), default=None)


def weights_bytes(recipe: Recipe) -> float | None:
    """Return the bytes of the host's weights as loaded, or None where nothing says how large it is."""
    count = parameters(recipe.model)
    return None if count is None else count * _number_bytes(recipe)


def _number_bytes(recipe: Recipe) -> float:
    return FOUR_BITS if recipe.load_in_4bit else BYTES.get(recipe.dtype, 2.0)


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
