"""What a recipe trains: the host loaded, prompts attached, LoRA put on, and every part's learning rate."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpp_plugins import plugins
from vpp_plugins.attach import (
    CONFIG_FILE,
    active_vpp,
    attach_control,
    attach_vpp,
    every_vpp,
    host_state,
    is_attached,
    unwrap,
)
from vpp_plugins.errors import VPPError, known_name
from vpp_plugins.evaluate import check_there, load_pretrained, not_loaded
from vpp_plugins.pocket import register_pocket, start_queries, untrained_pocket
from vpp_plugins.processor import VPPProcessor
from vpp_plugins.train.groups import Part, choose_parts, lora_targets, parameter_groups
from vpp_plugins.train.recipe import NO_PROMPTS, PARTS, Recipe, shipped

POCKET = "pocket"
"""The recipe's `model` for the pocket model, which begins at random, its prompts attached."""
DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")


def load_host(recipe: Recipe) -> tuple[Any, Any]:
    """Load the recipe's host and its processor from a folder or hub id; "pocket" is the untrained pocket model."""
    if recipe.model == POCKET:
        _check_pocket(recipe)
        seed = int(recipe.trainer.get("seed", 0))
        return untrained_pocket(prompt_changes(recipe), vpp=recipe.vpp != NO_PROMPTS, seed=seed)
    _check_family(settings_of(check_there(recipe.model)).get("model_type"), recipe)
    if recipe.vpp == NO_PROMPTS and Path(recipe.model, CONFIG_FILE).is_file():
        warnings.warn(
            f"'{recipe.model}' was trained with the prompts that lie beside it, so what is trained of it without is no "
            "fair control: name a host that was trained without.",
            stacklevel=2,
        )
    options: dict[str, Any] = {"dtype": recipe.dtype}
    if recipe.attn_implementation is not None:
        options["attn_implementation"] = recipe.attn_implementation
    if recipe.load_in_4bit:
        options["quantization_config"] = _four_bits(recipe)
    host, processor = load_pretrained(recipe.model, recipe.processor, **options)
    if recipe.load_in_4bit:
        from peft import prepare_model_for_kbit_training

        host = prepare_model_for_kbit_training(host, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    return host, processor


def check_how_loaded(recipe: Recipe) -> None:
    """Raise VPPError for a dtype or an attention that nobody knows: better said before anything is loaded."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known_name(recipe.dtype, DTYPES, "dtype")
    asked = recipe.attn_implementation
    if asked is not None and "/" not in asked:  # a kernel of the hub has an owner
        known_name(asked, ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()], "attention")


def _check_pocket(recipe: Recipe) -> None:
    """Raise VPPError where the recipe asks for what is only chosen when a model is loaded, or brings other prompts."""
    asked, usual = vars(recipe), vars(Recipe(model="", data="", output_dir=""))
    for key in ("processor", "dtype", "attn_implementation", "load_in_4bit", "vpp"):
        if asked[key] != usual[key] and (key, asked[key]) != ("vpp", NO_PROMPTS):
            raise VPPError(
                f'model = "{POCKET}" is built at random with prompts of its own, so {key} has nothing to act on: '
                "leave it out."
            )


def empty_host(recipe: Recipe) -> tuple[Any, Any]:
    """Return the recipe's host without weights, for what needs its shape alone, and its processor."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if recipe.model == POCKET:
        return load_host(recipe)
    register_pocket()  # one that was trained anew lies in a folder like any other
    check_there(recipe.model)
    try:
        config = AutoConfig.from_pretrained(recipe.model)
        processor = AutoProcessor.from_pretrained(recipe.processor or recipe.model)
        with torch.device("meta"):
            host = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError) as error:
        raise not_loaded(recipe.model, error) from None
    for table in (host.get_input_embeddings(), host.get_output_embeddings()):
        table.to_empty(device="cpu")  # prompts take device and dtype from it, and may add a row
    host.tie_weights()
    return host, processor


def check_family(host: Any, recipe: Recipe) -> None:
    """Raise VPPError where the recipe is for another family than the model."""
    _check_family(unwrap(host).config.model_type, recipe)


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what a model's config.json says: nothing where there is none, as of LoRA, or it is damaged."""
    try:
        return dict(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _check_family(found: str | None, recipe: Recipe) -> None:
    if found is not None and recipe.family is not None and found != recipe.family:
        raise VPPError(
            f"the recipe is for the family '{recipe.family}', but the model is a '{found}': take another recipe, or "
            f"--set family={found} where its settings fit nonetheless."
        )


def attach(host: nn.Module, processor: Any, recipe: Recipe) -> tuple[Any, VPPProcessor]:
    """Attach the recipe's prompts, unless some are attached, and return the model and its VPPProcessor."""
    if recipe.vpp == NO_PROMPTS and is_attached(host) and not active_vpp(host).is_empty:
        raise VPPError('the recipe says vpp = "none", but the given model has VPP attached: call detach_vpp(model).')
    if not is_attached(host):
        if recipe.vpp == NO_PROMPTS:
            attach_control(host)
        elif recipe.vpp is not None:
            attach_vpp(host, recipe.vpp)
        else:
            attach_vpp(host, plugins.describe(unwrap(host)).defaults.changed(prompt_changes(recipe)))
            start_queries(unwrap(host), seed=int(recipe.trainer.get("seed", 0)))
    wrapped = processor if isinstance(processor, VPPProcessor) else VPPProcessor(processor, host)
    if recipe.chat_template is not None:
        try:
            wrapped.chat_template = shipped(Path(recipe.chat_template), "recipes").read_text(encoding="utf-8")
        except OSError as error:
            raise VPPError(f"the chat template '{recipe.chat_template}' cannot be read ({error.strerror}).") from None
    return host, wrapped


def prepare_for_training(model: Any, recipe: Recipe) -> tuple[Any, list[dict[str, Any]]]:
    """Put LoRA on an attached model where the recipe wants it, freeze what is frozen, and return torch's groups.

    Prompts are on again after PEFT, which freezes all that it does not know. Where the run computes in bf16 or fp16,
    what is trained becomes float32: steps of 1e-5 are lost on bfloat16's eight bits.
    """
    if recipe.lora_scope is not None:
        model = _with_lora(model, recipe)
    groups = parameter_groups(model, learning_rates(recipe))
    if recipe.trainer.get("bf16") or recipe.trainer.get("fp16"):
        for group in groups:
            for parameter in group["params"]:
                parameter.data = parameter.data.float()
    for vpp in every_vpp(unwrap(model)):
        vpp.trained = True  # it is about to be: the warning that it is not would come at the first step
    return model, groups


def learning_rates(recipe: Recipe) -> dict[str, Part]:
    """Return how each part learns."""
    one = recipe.trainer.get("learning_rate")
    rates = ({} if one is None else dict.fromkeys(PARTS, float(one))) | dict(recipe.lr)
    parts = choose_parts(recipe.learning_rates, freeze=recipe.freeze, lr=rates, schedule=recipe.schedule)
    decay = float(recipe.trainer.get("weight_decay", 0.0))
    return {name: replace(part, weight_decay=decay) for name, part in parts.items()}


def _with_lora(model: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    scope = recipe.lora_scope or ""
    whole = _projectors(unwrap(model)) if projector_learns_whole(recipe) else []
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=lora_targets(model, scope=scope, first_layer=recipe.lora_first_layer),
        modules_to_save=whole or None,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT reads it
        return get_peft_model(model, config)


def projector_learns_whole(recipe: Recipe) -> bool:
    """Whether the projector learns beside LoRA, which is elsewhere."""
    return recipe.lora_scope not in ("projector", "all") and "projector" not in recipe.freeze


def _projectors(host: Any) -> list[str]:
    """Return the paths of the projectors; of a list of them each one's, as PEFT wraps no lists."""
    paths = []
    for path in host_state(host).backbone.projectors:
        module = host.get_submodule(path)
        listed = isinstance(module, nn.ModuleList)
        paths += [f"{path}.{number}" for number in range(len(module))] if listed else [path]
    return paths


def prompt_changes(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe changes of its family's prompts, see `VPPConfig.changed`."""
    changes: Mapping[str, Any] = {"global_vpp": recipe.global_vpp, "local_vpp": recipe.local_vpp}
    return {name: change for name, change in changes.items() if change is not True and change != {}}


def _four_bits(recipe: Recipe) -> Any:
    """Return how to quantise; the output head stays as it is, and a projector that learns whole, as 4 bits cannot."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise VPPError("load_in_4bit needs bitsandbytes: pip install bitsandbytes.")
    host, _ = empty_host(recipe)
    head = host.get_output_embeddings()
    kept = [name for name, module in host.named_modules() if module is head]
    if projector_learns_whole(recipe):
        kept += plugins.describe(host).projectors
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=kept,
    )
