"""Training scenes drawn on the fly: a sample is a function of the seed and its number, so nothing is stored."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any, overload

from PIL import Image
from rich.console import Console

from vpp_plugins.data import Describe, Locate, Sample, Tally, Turn
from vpp_plugins.data.scenes import SCENES_VERSION, Scene, SceneGenerator, SceneSource, Shapes, fetch_assets
from vpp_plugins.errors import VPPError
from vpp_plugins.train.dataset import TrainingData
from vpp_plugins.train.recipe import Recipe

SIZE = 320
"""Side of a scene, in pixels."""
LOCATED = 7
"""Expressions of a scene that are asked for, at most; every object is also described."""
DESCRIBED = 2
"""Descriptions that stand among the expressions; the others come last, where `max_turns` may leave them out."""
_ALONE, _FEW, _MANY = (1, 1), (2, 3), (3, 6)
_MIXED = (_ALONE, _FEW, _MANY, _MANY, _MANY, _ALONE, _FEW, _MANY, _MANY, _MANY)
_EASY = (_ALONE, _FEW)


class DrawnScenes(TrainingData):
    """`count` scenes of one split; the first tenth of them are easy, with one to three objects.

    A sample asks for up to seven expressions and describes each object: a dialogue of several turns about one image,
    as LLaVA's own data have. Samples and images depend on `seed` and their number alone.
    """

    def __init__(self, source: Any, count: int, *, split: str = "train", seed: int = 0) -> None:
        if count < 1:
            raise VPPError(f"max_samples should be 1 or more scenes, but is {count}.")
        self._generators = {
            bounds: SceneGenerator(
                source, split=split, seed=seed, size=SIZE, min_objects=bounds[0], max_objects=bounds[1]
            )
            for bounds in (_ALONE, _FEW, _MANY)
        }
        self.tally = Tally()
        self.count, self.split, self.seed = count, split, seed
        self.samples: Any = _Drawn(self)
        self._scene = lru_cache(maxsize=4)(self._draw)  # the sample's image is asked for right after the sample

    def sample(self, index: int) -> Sample:
        """Return the sample of this number; its image is drawn too."""
        scene = self._scene(index)
        rng = Random(f"{self.seed}/{index}")
        chosen = rng.sample(scene.expressions, min(LOCATED, len(scene.expressions)))
        described: list[Turn] = [Describe((thing.box_xyxy,), thing.name) for thing in scene.objects]
        rng.shuffle(described)
        turns = [*(Locate(found.text, (found.box_xyxy,)) for found in chosen), *described[:DESCRIBED]]
        rng.shuffle(turns)
        turns += described[DESCRIBED:]
        return Sample(f"{scene.key}/{index}", str(index), scene.width, scene.height, tuple(turns), split=self.split)

    def image(self, index: int) -> Image.Image:
        """Return the sample's image."""
        return self._scene(index).image

    def fingerprint(self) -> str:
        """Return a SHA-256 of all that the scenes depend on."""
        source: SceneSource = self._generators[_MANY].source
        about = [SCENES_VERSION, source.digest(), self.count, self.split, self.seed, SIZE, LOCATED, DESCRIBED]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_scene"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._scene = lru_cache(maxsize=4)(self._draw)

    def _draw(self, index: int) -> Scene:
        bounds = _EASY[index % 2] if index < self.count // 10 else _MIXED[index % len(_MIXED)]
        return self._generators[bounds].scene(index)


class _Drawn(Sequence[Sample]):
    """The samples by number, as a list would have them."""

    def __init__(self, scenes: DrawnScenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return self.scenes.count

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        numbers = range(len(self))[index]
        return self.scenes.sample(numbers) if isinstance(numbers, int) else [self.scenes.sample(n) for n in numbers]


def load_scenes(recipe: Recipe) -> DrawnScenes:
    """Return the recipe's scenes; `data` is the folder of the cut-outs, which are fetched if they are not there.

    Where they cannot be had, the scenes are of shapes drawn in code, and one line says so.
    """
    if recipe.max_samples is None:
        raise VPPError("scenes are drawn without end: say how many are one epoch, as max_samples = 12000.")
    console = Console(stderr=True)
    try:
        source: Any = fetch_assets(recipe.data, progress=console.print)
    except VPPError as error:
        console.print(f"{error} The training goes on with shapes drawn in code.", highlight=False)
        source = Shapes()
    return DrawnScenes(
        source, recipe.max_samples, split=recipe.split or "train", seed=int(recipe.trainer.get("seed", 0))
    )
