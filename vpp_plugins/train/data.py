"""A recipe's data, checked before a run: what is missing is listed, and more than allowed stops it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpp_plugins.data import MixedData, PixelBudget, TrainingData, open_data
from vpp_plugins.data.formats import Reading
from vpp_plugins.data.scenes import draw_scenes
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.train.recipe import Recipe

KEYS = ("data", "data_format", "data_family", "data_boxes", "data_pixels", "images", "split", "max_samples", "weight")
"""What an entry of `mix` may say; all but `weight` mean what they mean in the recipe."""


def load_data(recipe: Recipe) -> TrainingData:
    """Read the recipe's data; raises VPPError where more is faulty than `max_skipped` allows, and lists it."""
    if recipe.data_format == "drawn-scenes":
        if recipe.max_samples is None:
            raise VPPError("scenes are drawn without end: say how many are one epoch, as max_samples = 12000.")
        seed = int(recipe.trainer.get("seed", 0))
        return draw_scenes(recipe.data, recipe.max_samples, split=recipe.split or "train", seed=seed)
    if recipe.images is not None and not Path(recipe.images).is_dir():
        raise VPPError(
            f"there is no folder of images '{recipe.images}': --set images=FOLDER, whence their names start."
        )
    data = open_data(
        recipe.data,
        recipe.data_format,
        cache=recipe.output_dir,
        images=recipe.images,
        reading=Reading(
            split=recipe.split, family=recipe.data_family, boxes=recipe.data_boxes, pixels=pixel_budget(recipe)
        ),
        limit=recipe.max_samples,
    )
    if data.lost > recipe.max_skipped:
        rows = [f"{count} x {issue} ({examples})" for issue, count, examples in data.tally.rows()]
        raise VPPError(
            f"{data.lost} faults in '{recipe.data}' are more than max_skipped = {recipe.max_skipped}: "
            f"{'; '.join(rows)}. Fix the data (`vpp doctor` shows them), or raise max_skipped."
        )
    return data


def pixel_budget(recipe: Recipe) -> PixelBudget | None:
    """Return the recipe's `data_pixels`; raises VPPError where they are not the least and the most."""
    if not recipe.data_pixels:
        return None
    if len(recipe.data_pixels) != 2:
        raise VPPError(f"data_pixels names the least and the most pixels, but is {list(recipe.data_pixels)}.")
    return PixelBudget(*recipe.data_pixels)


def load_mixture(recipe: Recipe) -> TrainingData:
    """Read the recipe's data and what it mixes in; raises VPPError as `load_data` does, and for a faulty entry."""
    first = load_data(recipe)
    if not recipe.mix:
        return first
    weights = [1.0, *(_weight(entry) for entry in recipe.mix)]
    parts = [first, *(load_data(_recipe_of(entry, recipe)) for entry in recipe.mix)]
    return MixedData(parts, weights, shuffled=recipe.trainer.get("train_sampling_strategy") != "sequential")


def load_kept(recipe: Recipe) -> TrainingData:
    """Read what the recipe's `keep` names; raises VPPError as `load_mixture` does."""
    _check_entry("keep", recipe.keep, KEYS[:-1])
    return load_data(_recipe_of(recipe.keep, recipe))


def _recipe_of(entry: Mapping[str, Any], recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        data=entry["data"],
        data_format=entry.get("data_format", "neutral"),
        data_family=entry.get("data_family", recipe.data_family),
        data_boxes=entry.get("data_boxes", ""),
        data_pixels=tuple(entry.get("data_pixels", recipe.data_pixels)),
        images=entry.get("images"),
        split=entry.get("split", ""),
        max_samples=entry.get("max_samples"),
    )


def _check_entry(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise VPPError(f"{where} has no key '{key}'.{nearest(key, known)} Known: {', '.join(known)}.")
    if not isinstance(entry.get("data"), str):
        raise VPPError(f'{where} names its file, as data = "...", but is {dict(entry)}.')
    if entry.get("data_format", "neutral") == "neutral" and not Path(entry["data"]).exists():
        raise VPPError(
            f"there is no '{entry['data']}', which {where} names: `vpp data chats` writes a model's own chats."
        )


def _weight(entry: Mapping[str, Any]) -> float:
    _check_entry("an entry of mix", entry, KEYS)
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise VPPError(f"the weight of '{entry['data']}' in mix should be a number above 0, but is {weight!r}.")
    return float(weight)
