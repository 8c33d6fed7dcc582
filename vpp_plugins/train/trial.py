"""A recipe's whole way in little: its data, words, parts and losses on a tiny random host of its family, on a CPU."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpp_plugins.data.formats import data_format
from vpp_plugins.data.scenes import SHAPES
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.testing import TINY_DETR
from vpp_plugins.train.evaluation import evaluation_of
from vpp_plugins.train.machine import forecast
from vpp_plugins.train.model import POCKET, load_host
from vpp_plugins.train.recipe import NO_PROMPTS, Recipe
from vpp_plugins.train.run import RUN, Trained, train
from vpp_plugins.train.tiny_hosts import FAMILIES, tiny_host

ELSEWHERE = (
    "bf16 fp16 tf32 fsdp fsdp_config deepspeed optim resume_from_checkpoint load_best_model_at_end push_to_hub "
    "torch_compile bf16_full_eval fp16_full_eval dataloader_prefetch_factor dataloader_persistent_workers"
).split()
"""Keys for GPUs, several processes, or an earlier run."""
LITTLE: Mapping[str, Any] = {
    "max_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "eval_steps": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}
NEED_NUMBERS = ("coordinates", "looking", "copying", "writing")
"""Losses for tokenizers with a token for each number, which the tiny hosts' have not."""
DETECTOR: Mapping[str, Any] = {
    "generator": "detr",
    "num_queries": 8,
    "image_size": 64,
    "projector_size": 16,
    "generator_options": dict(TINY_DETR),
}


@dataclass(frozen=True)
class DryRun:
    """What two steps in little have shown."""

    trained: Trained
    samples: int
    sentences: list[str]
    """What was done, what could not be tried, and what the real run will take."""


def dry_run(recipe: Recipe) -> DryRun:
    """Take two steps and an evaluation on the recipe's own data with a tiny random host, and say what it will take.

    Nothing is fetched, and nothing is left on the disk. Raises VPPError as `train` does, and where no tiny host of the
    family is known.
    """
    with tempfile.TemporaryDirectory() as folder:
        little, left_out = in_little(recipe, Path(folder))
        little, unasked = _asked(little)
        whole = recipe.model == POCKET
        model, processor = load_host(little) if whole else _tiny(recipe)
        trained = train(little, model=model, processor=processor)
        samples = int(json.loads((trained.folder.parent / RUN).read_bytes())["samples"])
    host = "the untrained pocket model" if whole else f"a tiny random {type(model).__name__}, of which the table is,"
    said = [f"{_done(trained, host, samples)}{unasked}."]
    if little.data != recipe.data:
        said.append(f"The scenes were of shapes, as the cut-outs are not in '{recipe.data}': the run fetches them.")
    if left_out:
        said.append(f"Not tried here, as they need the real model: {', '.join(left_out)}.")
    speed = [entry["samples_per_second"] for entry in trained.history if "samples_per_second" in entry][-1]
    tried: dict[str, Any] = {"whole": model, "speed": speed} if whole else {}
    return DryRun(trained, samples, [*said, *forecast(recipe, samples, **tried)])


def _done(trained: Trained, host: str, samples: int) -> str:
    evaluated = any("eval_acc_50" in entry for entry in trained.history)
    return (
        f"{trained.steps} steps on {host} from {samples:,} samples, {len(trained.skipped)} of those tried left out; "
        + ("an evaluation ran" if evaluated else "nothing was evaluated")
    )


def in_little(recipe: Recipe, folder: Path) -> tuple[Recipe, list[str]]:
    """Return the recipe for a tiny host, and what it leaves out."""
    kept = {key: value for key, value in recipe.trainer.items() if key not in ELSEWHERE}
    batch = min(2, int(kept.get("per_device_train_batch_size", 2)))
    trainer = {**kept, **LITTLE, "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch}
    if recipe.trainer.get("optim") == "muon":
        trainer["optim"] = "muon"
    drawn = recipe.data_format == "drawn-scenes" and not Path(recipe.data).is_dir()  # nothing is fetched
    little = replace(
        recipe,
        data=SHAPES if drawn else recipe.data,
        output_dir=str(folder / "run"),
        cache_encodings=None if recipe.cache_encodings is None else str(folder / "encodings"),
        snapshots=(),
        trainer=trainer,
        **_evaluation(recipe, folder),
    )
    if recipe.model == POCKET:
        return little, []
    off = [one for one in recipe.losses if one.partition(":")[0] in NEED_NUMBERS]
    keys = [key for key in ("hide_boxes", "lora_first_layer") if getattr(recipe, key)]
    left_out = [*off, *keys, *([recipe.vpp] if _own_prompts(recipe) else [])]
    little = replace(
        little,
        processor=None,
        dtype="auto",
        attn_implementation=None,
        load_in_4bit=False,
        lora_first_layer=0,  # a tiny host has two
        vpp=None if _own_prompts(recipe) else recipe.vpp,
        local_vpp=_small(recipe.local_vpp),
        losses=tuple(one for one in recipe.losses if one not in off),
        hide_boxes=0.0,
    )
    return little, [one for one in left_out if one is not None]


def _own_prompts(recipe: Recipe) -> bool:
    return recipe.vpp not in (None, NO_PROMPTS)


def _evaluation(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Ask the recipe's own rows, or else the first of those that it trains on."""
    if recipe.eval_data is not None or recipe.data_format == "drawn-scenes":
        return {"eval_limit": 4}
    inside = data_format(recipe.data_format).holds_images
    return {
        "eval_data": recipe.data,
        "eval_format": recipe.data_format,
        "eval_images": str(folder / "images") if inside else recipe.images,
        "eval_limit": 4,
    }


def _asked(little: Recipe) -> tuple[Recipe, str]:
    """Leave the evaluation out where the recipe names none, and its own data have nothing to ask; and say why."""
    if little.eval_data is None or little.eval_data != little.data:
        return little, ""
    try:
        evaluation_of(little, 1)
    except VPPError as error:
        return replace(little, eval_data=None), f" ({error})"
    return little, ""


def _small(local: Mapping[str, Any] | bool) -> Mapping[str, Any] | bool:
    if not isinstance(local, Mapping):
        return local
    kept = {name: value for name, value in local.items() if name != "weights"}
    fetched = kept.get("generator", "detr") in ("detr", "hf_detector")
    return {**kept, **(DETECTOR if fetched else {"image_size": 64})}


def _tiny(recipe: Recipe) -> tuple[Any, Any]:
    family = recipe.family
    if family is None:
        raise VPPError(
            f"a dry run builds a tiny host of the recipe's family, which it does not name: --set family=NAME, one of "
            f"{', '.join(FAMILIES)}."
        )
    if family not in FAMILIES:
        raise VPPError(
            f"no tiny host of the family '{family}' is known.{nearest(family, FAMILIES)} Known: {', '.join(FAMILIES)}; "
            "for others take a few steps of the real run (--set max_steps=2)."
        )
    return tiny_host(family)
