"""Render scenes once and keep the frozen backbone's features, with and without the drawn axes, for stage 1.

    python examples/pocket/cache_features.py --assets assets --out cache --split train --count 24000 --part 0/2

Several parts may run side by side. A part that was stopped goes on where it was.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from cached_scenes import SIZE, curriculum, describe
from numpy.lib.format import open_memmap

from vpp_plugins.data.scenes import find_assets
from vpp_plugins.images import letterbox
from vpp_plugins.pocket import TOKEN_WIDTH, create_backbone, load_imagenet_backbone, merge_maps, pocket_config
from vpp_plugins.prompts import GlobalVPP

BATCH = 16
ARMS = ("plain", "vpp")


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
    prompt = pocket_config().global_vpp
    axes = GlobalVPP(SIZE, border=prompt.border, image_mean=prompt.image_mean, image_std=prompt.image_std)
    axes.requires_grad_(False)

    files = {}
    for arm in ARMS:
        path = args.out / f"{args.split}_{arm}_{part}of{parts}.npy"
        files[arm] = open_memmap(
            path, "r+" if path.exists() else "w+", np.float16, (stop - start, (SIZE // 32) ** 2, TOKEN_WIDTH)
        )
    listing = args.out / f"{args.split}_{part}of{parts}.jsonl"
    done = len(listing.read_text().splitlines()) if listing.exists() else 0
    with listing.open("a") as out:
        for first in range(start + done, stop, BATCH):
            scenes = [generators[i % 10].scene(i) for i in range(first, min(first + BATCH, stop))]
            pixels = torch.stack([letterbox(scene.image, SIZE) for scene in scenes])
            at = first - start
            for arm, image in zip(ARMS, (pixels, axes(pixels)), strict=True):
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    maps = backbone(image.contiguous(memory_format=torch.channels_last))
                files[arm][at : at + len(scenes)] = merge_maps(*(m.float() for m in maps)).numpy()
            out.writelines(json.dumps(describe(scene)) + "\n" for scene in scenes)
            out.flush()
            if at % (BATCH * 50) == 0:
                print(f"{at + len(scenes)} of {stop - start}", flush=True)


if __name__ == "__main__":
    main()
