"""Several data sets in one run: a recipe's `mix`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from vpp_plugins.data.sample import Sample
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.train.dataset import TrainingData, load_data
from vpp_plugins.train.mixing import mixture_order
from vpp_plugins.train.recipe import Recipe

KEYS = ("data", "data_format", "data_family", "images", "split", "max_samples", "weight")
"""What an entry of `mix` may say; all but `weight` mean what they mean in the recipe."""


class MixedData(TrainingData):
    """Samples of several sets, evenly mixed; each set finds its own pictures.

    `weights` say how many samples of each set come for one of the first set, which comes once as a whole.
    """

    def __init__(self, parts: Sequence[TrainingData], weights: Sequence[float]) -> None:
        every = [sample for part in parts for sample in part.samples]
        length = sum(round(len(parts[0]) * weight) for weight in weights)
        order = mixture_order([len(part) for part in parts], weights, length=length)
        super().__init__((every[number] for number in order), parts[0].root, parts[0].tally)
        self._homes = {id(sample): part for part in parts for sample in part.samples}
        for part in parts[1:]:
            self.tally.counts += part.tally.counts
            self.tally.examples = {**part.tally.examples, **self.tally.examples}

    def picture(self, sample: Sample) -> Image.Image | None:
        """Return the sample's picture from its own set's folder."""
        return self._homes[id(sample)].picture(sample)

    def _is_there(self, sample: Sample) -> bool:
        return True  # each set has looked for its own


def load_mixture(recipe: Recipe) -> TrainingData:
    """Read the recipe's data and what it mixes in; raises VPPError as `load_data` does, and for a faulty entry."""
    first = load_data(recipe)
    if not recipe.mix:
        return first
    weights = [1.0, *(_weight(entry) for entry in recipe.mix)]
    return MixedData([first, *(load_data(_recipe_of(entry, recipe)) for entry in recipe.mix)], weights)


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


def _weight(entry: Mapping[str, Any]) -> float:
    for key in entry:
        if key not in KEYS:
            raise VPPError(f"an entry of mix has no key '{key}'.{nearest(key, KEYS)} Known: {', '.join(KEYS)}.")
    weight = entry.get("weight", 1.0)
    if not isinstance(entry.get("data"), str):
        raise VPPError(f'an entry of mix names its file, as data = "...", but is {dict(entry)}.')
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise VPPError(f"the weight of '{entry['data']}' in mix should be a number above 0, but is {weight!r}.")
    return float(weight)
