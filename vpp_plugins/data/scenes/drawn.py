"""Training scenes drawn on the fly: a sample is a function of the seed and its number, so nothing is stored."""

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

from vpp_plugins.data.dataset import LoadedSample, TrainingData
from vpp_plugins.data.sample import Describe, Locate, Sample, Tally, Turn
from vpp_plugins.data.scenes.assets import Assets, fetch_assets
from vpp_plugins.data.scenes.cutouts import PhotoCutouts
from vpp_plugins.data.scenes.generator import SCENES_VERSION, SceneGenerator
from vpp_plugins.data.scenes.shapes import Shapes
from vpp_plugins.data.scenes.source import SceneSource
from vpp_plugins.errors import VPPError

SIZE = 320
"""Side of a scene, in pixels."""
LOCATED = 10
"""Expressions of a scene that are located, at most; every object is also described."""
DESCRIBED = 1
"""Descriptions that stand among the expressions; the others come last, where `max_turns` may leave them out."""
_ALONE, _FEW, _MANY = (1, 1), (2, 3), (3, 6)
_MIXED = (_ALONE, _FEW, _MANY, _MANY, _MANY, _ALONE, _FEW, _MANY, _MANY, _MANY)
_EASY = (_ALONE, _FEW)


class DrawnScenes(TrainingData):
    """`count` scenes of one split; the first tenth of them are easy, with one to three objects.

    A sample locates up to ten expressions and describes each object: a dialogue of several turns about one image,
    as LLaVA's own data have. Samples and images depend on `seed` and their number alone.
    """

    has_images = True

    def __init__(self, source: Assets | SceneSource, count: int, *, split: str = "train", seed: int = 0) -> None:
        if count < 1:
            raise VPPError(f"max_samples should be 1 or more scenes, but is {count}.")
        shared = PhotoCutouts(source) if isinstance(source, Assets) else source  # takes a second to look through
        self._generators = {
            (low, high): SceneGenerator(shared, split=split, seed=seed, size=SIZE, min_objects=low, max_objects=high)
            for low, high in (_ALONE, _FEW, _MANY)
        }
        self.tally = Tally()
        self.count, self.split, self.seed = count, split, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LoadedSample:
        """Draw the scene of this number."""
        index = range(self.count)[index]
        bounds = _EASY[index % 2] if index < self.count // 10 else _MIXED[index % len(_MIXED)]
        scene = self._generators[bounds].scene(index)
        rng = Random(f"{self.seed}/{index}")
        chosen = rng.sample(scene.expressions, min(LOCATED, len(scene.expressions)))
        described: list[Turn] = [Describe((thing.box_xyxy,), thing.name) for thing in scene.objects]
        rng.shuffle(described)
        turns = [*(Locate(found.text, found.boxes_xyxy) for found in chosen), *described[:DESCRIBED]]
        rng.shuffle(turns)
        turns += described[DESCRIBED:]
        sample = Sample(f"{scene.key}/{index}", str(index), scene.width, scene.height, tuple(turns), split=self.split)
        return LoadedSample(index, sample, scene.image)

    def fingerprint(self) -> str:
        """Return a SHA-256 of all that the scenes depend on."""
        source: SceneSource = self._generators[_MANY].source
        about = [SCENES_VERSION, source.digest(), self.count, self.split, self.seed, SIZE, LOCATED, DESCRIBED]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


SHAPES = "shapes"
"""In a folder's place: scenes of shapes drawn in code, which need no files."""


def draw_scenes(folder: str | Path, count: int, *, split: str, seed: int) -> DrawnScenes:
    """Return scenes of the cut-outs in a folder, which are fetched if they are not there; of shapes for "shapes".

    Where they cannot be had, the scenes are of shapes drawn in code, and one line says so.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if str(folder) == SHAPES:
        return DrawnScenes(Shapes(), count, split=split, seed=seed)
    try:
        source: Any = fetch_assets(folder, progress=console.print)
    except VPPError as error:
        console.print(f"{error} The training goes on with shapes drawn in code.", highlight=False)
        source = Shapes()
    return DrawnScenes(source, count, split=split, seed=seed)
