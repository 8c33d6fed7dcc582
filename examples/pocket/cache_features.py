"""Render scenes once and keep the frozen backbone's features, with and without the drawn axes, for the fast part of training.

    python examples/pocket/cache_features.py --assets assets --out cache --split train --count 24000 --part 0/2

Several parts may run side by side. A part that was stopped goes on where it was.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from vpp_plugins.data.assets import find_assets
from vpp_plugins.data.scenes import Scene, SceneGenerator
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD, letterbox
from vpp_plugins.pocket.build import load_imagenet_backbone
from vpp_plugins.pocket.vision import create_backbone, merge_maps
from vpp_plugins.prompts.global_vpp import GlobalVPP

SIZE, BORDER, TOKENS, WIDTH, BATCH = 320, 29, 100, 768, 16
ARMS = ("plain", "vpp")


def curriculum(assets: object, split: str, seed: int) -> list[SceneGenerator]:
    """Ten generators that take turns: training mixes in scenes of one and of two or three objects, all else is the benchmark."""
    bounds = [(1, 1)] * 2 + [(2, 3)] * 2 + [(3, 6)] * 6 if split == "train" else [(3, 6)] * 10
    made = {b: SceneGenerator(assets, split=split, seed=seed, size=SIZE, min_objects=b[0], max_objects=b[1]) for b in set(bounds)}
    return [made[b] for b in bounds]


def describe(scene: Scene) -> dict[str, object]:
    """The scene without its picture; boxes are xyxy fractions of the side."""
    return {
        "objects": [[o.name, [round(v / SIZE, 4) for v in o.box_xyxy]] for o in scene.objects],
        "expressions": [[e.text, [round(v / SIZE, 4) for v in e.box_xyxy], e.kind, e.object] for e in scene.expressions],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=24000)
    parser.add_argument("--part", default="0/1", help="k/n: this process makes the k-th of n equal parts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    part, parts = map(int, args.part.split("/"))
    start, stop = args.count * part // parts, args.count * (part + 1) // parts
    args.out.mkdir(parents=True, exist_ok=True)

    generators = curriculum(find_assets(args.assets), args.split, args.seed)
    backbone = create_backbone()
    backbone.load_state_dict(load_imagenet_backbone())
    backbone.to(memory_format=torch.channels_last)
    axes = GlobalVPP(SIZE, border=BORDER, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD).requires_grad_(False)

    files = {}
    for arm in ARMS:
        path = args.out / f"{args.split}_{arm}_{part}of{parts}.npy"
        files[arm] = open_memmap(path, "r+" if path.exists() else "w+", np.float16, (stop - start, TOKENS, WIDTH))
    listing = args.out / f"{args.split}_{part}of{parts}.jsonl"
    done = len(listing.read_text().splitlines()) if listing.exists() else 0
    with listing.open("a") as out:
        for first in range(start + done, stop, BATCH):
            scenes = [generators[i % 10].scene(i) for i in range(first, min(first + BATCH, stop))]
            pixels = torch.stack([letterbox(scene.image, SIZE) for scene in scenes])
            at = first - start
            for arm, picture in zip(ARMS, (pixels, axes(pixels)), strict=True):
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    maps = backbone(picture.contiguous(memory_format=torch.channels_last))
                files[arm][at : at + len(scenes)] = merge_maps(*(m.float() for m in maps)).numpy()
            out.writelines(json.dumps(describe(scene)) + "\n" for scene in scenes)
            out.flush()
            if at % (BATCH * 50) == 0:
                print(f"{at + len(scenes)} of {stop - start}", flush=True)


if __name__ == "__main__":
    main()
