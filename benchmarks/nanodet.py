"""How many objects of scenes NanoDet's places find, without training: `python -m benchmarks.nanodet [--scenes 300]`.

Needs the scene images in `assets/` (`vpp data scenes` fetches them). An object counts as found where one of the first
N places has an IoU of at least 0.5 with it; the interval resamples scenes. The time is the generator's alone, in CPU
seconds of one thread.
"""

import argparse
import time

import torch
from torchvision.ops import box_iou

from vpp_adapters.nanodet import build_nanodet
from vpp_plugins.data.scenes import SceneGenerator, find_assets
from vpp_plugins.images import letterbox

SPLITS = ("test", "val", "train", "heldout")
PLACES = (8, 16, 24, 32, 64)
SIDE = 416


def main(count: int = 300) -> None:
    """Print a row for each split."""
    torch.set_num_threads(1)
    detector, assets = build_nanodet(num_queries=max(PLACES)), find_assets()
    print(f"split\tobjects\tN = {', '.join(map(str, PLACES))}\t95 % of N = 16\tat IoU 0.75\tmean IoU\tms")
    for split in SPLITS:
        scenes, best, spent = SceneGenerator(assets, split=split, seed=0), [], 0.0
        for scene in map(scenes.scene, range(count)):
            pixels = letterbox(scene.image, SIDE)[None]
            began = time.process_time()
            queries = detector(pixels, (pixels != 0).any(1))
            spent += time.process_time() - began
            boxes = detector.boxes(queries)[0] * scene.width
            overlaps = box_iou(boxes, torch.tensor([item.box_xyxy for item in scene.objects]))
            best.append(torch.stack([overlaps[:places].amax(0) for places in PLACES]))
        found, sixteen = torch.cat(best, dim=1), PLACES.index(16)
        recalls = ", ".join(f"{recall:.3f}" for recall in (found >= 0.5).float().mean(1).tolist())
        low, high = _interval([(int((scene[sixteen] >= 0.5).sum()), scene.shape[1]) for scene in best])
        fine, mean = (found[sixteen] >= 0.75).float().mean(), found[sixteen].mean()
        print(f"{split}\t{found.shape[1]}\t{recalls}\t{low:.3f} to {high:.3f}\t{fine:.3f}\t{mean:.3f}", end="\t")
        print(f"{spent / count * 1e3:.0f}", flush=True)


def _interval(scenes: list[tuple[int, int]]) -> tuple[float, float]:
    """Return the middle 95 % of found over all, over 2,000 draws of as many scenes."""
    counts = torch.tensor(scenes, dtype=torch.float64)
    drawn = torch.randint(len(scenes), (2000, len(scenes)), generator=torch.Generator().manual_seed(0))
    found, objects = counts[drawn].sum(1).T
    low, high = torch.quantile(found / objects, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _count() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="scenes of each split (default: 300)")
    count: int = parser.parse_args().scenes
    if count < 1:
        parser.error(f"--scenes must be at least 1, but is {count}")
    return count


if __name__ == "__main__":
    main(_count())
