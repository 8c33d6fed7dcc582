"""Several data sets in one run: a recipe's `mix`."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image

from vpp_plugins.data import Sample, Tally
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.train.dataset import TrainingData, load_data
from vpp_plugins.train.mixing import mixture_order, source_of
from vpp_plugins.train.recipe import Recipe

KEYS = ("data", "data_format", "data_family", "images", "split", "max_samples", "weight")
"""What an entry of `mix` may say; all but `weight` mean what they mean in the recipe."""


class MixedData(TrainingData):
    """Samples of several sets, evenly mixed; each set finds its own images.

    `weights` say how many samples of each set come for one of the first set, which comes once as a whole.
    """

    def __init__(self, parts: Sequence[TrainingData], weights: Sequence[float]) -> None:
        length = sum(round(len(parts[0]) * weight) for weight in weights)
        self.parts = tuple(parts)
        self.order = mixture_order([len(part) for part in parts], weights, length=length)
        self._starts = np.array([0, *accumulate(len(part) for part in parts)])
        self.samples = _Mixed(self)
        self.tally = Tally()
        for part in reversed(parts):
            self.tally.counts += part.tally.counts
            self.tally.examples |= part.tally.examples

    def where(self, index: int) -> tuple[TrainingData, int]:
        """Return the set that a sample comes from, and its number there."""
        part, number = source_of(self.order[index], self._starts)
        return self.parts[part], number

    def image(self, index: int) -> Image.Image | None:
        """Return the sample's image from its own set."""
        part, number = self.where(index)
        return part.image(number)

    def fingerprint(self) -> str:
        """Return a digest of the sets and of the order of their samples."""
        digest = hashlib.sha256(self.order.tobytes())
        for part in self.parts:
            digest.update(part.fingerprint().encode())
        return digest.hexdigest()


class _Mixed(Sequence[Sample]):
    def __init__(self, data: MixedData) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data.order)

    def __getitem__(self, index: Any) -> Any:
        part, number = self._data.where(index)
        return part.samples[number]


def load_mixture(recipe: Recipe) -> TrainingData:
    """Read the recipe's data and what it mixes in; raises VPPError as `load_data` does, and for a faulty entry."""
    first = load_data(recipe)
    if not recipe.mix:
        return first
    weights = [1.0, *(_weight(entry) for entry in recipe.mix)]
    return MixedData([first, *(load_data(_recipe_of(entry, recipe)) for entry in recipe.mix)], weights)


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


def _weight(entry: Mapping[str, Any]) -> float:
    _check_entry("an entry of mix", entry, KEYS)
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise VPPError(f"the weight of '{entry['data']}' in mix should be a number above 0, but is {weight!r}.")
    return float(weight)
