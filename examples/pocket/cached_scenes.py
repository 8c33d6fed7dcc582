"""The scenes and settings that the training scripts share, and the reader of what cache_features.py wrote."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vpp_plugins.data.scenes import Assets, Scene, SceneGenerator
from vpp_plugins.pocket import COARSE_CHANNELS

SIZE = 320  # of a scene, the tower's and the detector's images, in pixels


def curriculum(assets: Assets, split: str, seed: int) -> list[SceneGenerator]:
    """Ten generators that take turns; training mixes in scenes of one and of two or three objects."""
    bounds = [(1, 1)] * 2 + [(2, 3)] * 2 + [(3, 6)] * 6 if split == "train" else [(3, 6)] * 10
    made = {
        b: SceneGenerator(assets, split=split, seed=seed, size=SIZE, min_objects=b[0], max_objects=b[1])
        for b in set(bounds)
    }
    return [made[b] for b in bounds]


def describe(scene: Scene) -> dict[str, object]:
    """The scene without its image; boxes are xyxy fractions of the side."""
    return {
        "objects": [[o.name, [round(v / SIZE, 4) for v in o.box_xyxy]] for o in scene.objects],
        "expressions": [
            [e.text, [round(v / SIZE, 4) for v in e.box_xyxy], e.kind, e.object] for e in scene.expressions
        ],
    }


class CachedScenes:
    """Features and descriptions of one split's scenes, for one arm; parts still being written grow with `refresh`."""

    def __init__(self, folder: Path, split: str, arm: str) -> None:
        self._listings = sorted(folder.glob(f"{split}_[0-9]*of*.jsonl"))
        self._features = [
            np.load(folder / f"{split}_{arm}_{path.stem.split('_')[1]}.npy", mmap_mode="r") for path in self._listings
        ]
        self.refresh(0)

    def refresh(self, step: int) -> None:
        """Look for new scenes, every 200 steps."""
        if step % 200:
            return
        self.records, self._where = [], []
        for part, path in enumerate(self._listings):
            lines = path.read_text().split("\n")[:-1]
            self.records += map(json.loads, lines)
            self._where += [(part, row) for row in range(len(lines))]
        names = sorted({name for record in self.records for name, _ in record["objects"]})
        if not step:
            self.classes = {name: number for number, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.records)

    def features(self, indices: Sequence[int]) -> Tensor:
        """[batch, tokens, 768] of the given scenes."""
        rows = [self._features[part][row] for part, row in (self._where[i] for i in indices)]
        return torch.from_numpy(np.stack(rows)).float()

    def coarse(self, indices: Sequence[int]) -> Tensor:
        """[batch, 320, 10, 10]: the part that the detector's backbone computes."""
        rows = [self._features[part][row, :, :COARSE_CHANNELS] for part, row in (self._where[i] for i in indices)]
        return rearrange(torch.from_numpy(np.stack(rows)).float(), "b (h w) c -> b c h w", h=10)
