"""Score the pocket model as users run it, images through `Grounder`, beside text-blind baselines.

    python examples/pocket/evaluate.py --assets assets --out pocket_scores.json
    python examples/pocket/evaluate.py --assets assets --checkpoint runs/vpp/checkpoint.pt --sets test --scenes 50
    python examples/pocket/evaluate.py --assets assets --model out/pocket/final --sets test --scenes 40

Without --checkpoint and --model both shipped arms are scored.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from assemble import assemble

from vpp_plugins import Grounder
from vpp_plugins.boxes import Box
from vpp_plugins.data.scenes import Scene, SceneGenerator, find_assets, load_real_photos
from vpp_plugins.evaluate import Scores, full_image, load_grounder, mean_box, random_object, score, shuffled
from vpp_plugins.pocket import load_pocket

TRAINING_SCENES = 200  # for the mean box


class Sample:
    """One set of images, a row per expression."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        pairs = [(number, scene, expression) for number, scene in enumerate(scenes) for expression in scene.expressions]
        self.images = [number for number, *_ in pairs]
        self.images = [scene.image for _, scene, _ in pairs]
        self.texts = [expression.text for *_, expression in pairs]
        self.kinds = [expression.kind for *_, expression in pairs]
        self.boxes: list[Box] = [expression.box_xyxy for *_, expression in pairs]
        self.objects = [[o.box_xyxy for o in scene.objects] for _, scene, _ in pairs]

    def blind(self, mean: Box) -> dict[str, Scores]:
        """Baselines that see no text; a random object only where objects are listed."""
        sizes = [(image.height, image.width) for image in self.images]
        found = {
            "full image": score([full_image(size) for size in sizes], self.boxes),
            "mean training box": score([_scale(mean, size) for size in sizes], self.boxes),
        }
        if all(self.objects):
            guesses = [random_object(objects, seed=row) for row, objects in enumerate(self.objects)]
            found["random object, boxed perfectly"] = score(guesses, self.boxes)
        return found


def ask(grounder: Grounder, sample: Sample, texts: list[str]) -> list[Box | None]:
    """The first box of each answer."""
    return [answer.boxes[0] if answer.boxes else None for answer in grounder(sample.images, texts)]


def examine(grounder: Grounder, sample: Sample) -> dict[str, object]:
    """Scores with the right expressions, by kind, and with other images' expressions."""
    found = ask(grounder, sample, sample.texts)
    by_kind = {}
    for kind in sorted(set(sample.kinds)):
        rows = [row for row, k in enumerate(sample.kinds) if k == kind]
        by_kind[kind] = round(score([found[r] for r in rows], [sample.boxes[r] for r in rows]).acc_50, 4)
    control = ask(grounder, sample, shuffled(sample.texts, sample.images))
    return {
        **_rounded(score(found, sample.boxes)),
        "acc_50 by kind": by_kind,
        "shuffled expressions": _rounded(score(control, sample.boxes)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", required=True)
    parser.add_argument("--out", type=Path, default=Path("pocket_scores.json"))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--model", help="a folder that `vpp train` wrote")
    parser.add_argument("--weights", type=Path, help="a folder that ship.py wrote, in place of the shipped one")
    parser.add_argument("--arms", nargs="+", choices=["VPP", "without VPP"], default=["VPP", "without VPP"])
    parser.add_argument("--sets", nargs="+", default=["test", "heldout", "photos"])
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    assets = find_assets(args.assets)

    def scenes(split: str, count: int) -> list[Scene]:
        generator = SceneGenerator(assets, split=split, seed=0, size=320)
        return [generator.scene(index) for index in range(count)]

    training = [o.box_xyxy for scene in scenes("train", TRAINING_SCENES) for o in scene.objects]
    mean = mean_box(training, [(320, 320)] * len(training))
    samples = {s: Sample(load_real_photos() if s == "photos" else scenes(s, args.scenes)) for s in args.sets}
    report: dict[str, dict[str, object]] = {
        name: {"expressions": len(sample.texts)} | {k: _rounded(v) for k, v in sample.blind(mean).items()}
        for name, sample in samples.items()
    }
    for arm, (model, processor) in _models(args).items():
        grounder = Grounder(model, processor, batch_size=args.batch)
        for name, sample in samples.items():
            begin = time.time()
            report[name][arm] = {**examine(grounder, sample), "seconds": round(time.time() - begin, 1)}
            args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            print(name, arm, json.dumps(report[name][arm]), flush=True)


def _models(args: argparse.Namespace) -> dict[str, tuple[object, object]]:
    if args.checkpoint is not None:
        return {args.checkpoint.parent.name: assemble(args.checkpoint)[:2]}
    if args.model is not None:
        asker = load_grounder(args.model, dtype="float32", device="cpu")
        return {args.model: (asker.model, asker.processor)}
    folder = {} if args.weights is None else {"folder": args.weights}
    return {arm: load_pocket(arm == "VPP", **folder) for arm in args.arms}


def _scale(box: Box, size_hw: tuple[int, int]) -> Box:
    height, width = size_hw
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _rounded(scores: Scores) -> dict[str, float]:
    return {name: round(value, 4) for name, value in dataclasses.asdict(scores).items()}


if __name__ == "__main__":
    main()
