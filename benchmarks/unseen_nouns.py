"""Unseen nouns that COCO or ImageNet name, and those that neither does: `python -m benchmarks.unseen_nouns FOLDERS`.

FOLDERS are evaluations on the scenes' split "heldout"; with two, their paired difference is shown too. Both pretrained
parts have seen named nouns, in images and by class: the detector COCO's, the vision tower ImageNet's. A noun is named
where it is a class's name, one of its synonyms, or the last words of one ("camel" of "Arabian camel"). Intervals
resample images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data.imagenet_info import ImageNetInfo

from vpp_adapters.nanodet import NAMES
from vpp_plugins.evaluate import image_id, load_evaluation
from vpp_plugins.evaluate.metrics import interval

GROUPS = ("COCO", "ImageNet", "neither")


def group(noun: str) -> str:
    """Return who names a noun: COCO, ImageNet alone, or neither."""
    imagenet = ImageNetInfo()
    synonyms = [name for index in range(1000) for name in imagenet.index_to_description(index).casefold().split(", ")]
    for who, names in (("COCO", NAMES), ("ImageNet", synonyms)):
        if any(f" {name}".endswith(f" {noun.casefold()}") for name in names):
            return who
    return "neither"


def main(folders: Sequence[str]) -> None:
    """Print a row of Markdown for each evaluation, and for their difference."""
    evaluations = [load_evaluation(folder).judged for folder in folders]
    answers = [one.answer for one in evaluations[0]]
    images = np.array([image_id(answer.image, answer.id) for answer in answers])
    of_noun = {noun: group(noun) for noun in sorted({answer.category for answer in answers})}
    groups = np.array([of_noun[answer.category] for answer in answers])
    rows = {
        Path(folder).name: [one.correct for one in judged] for folder, judged in zip(folders, evaluations, strict=True)
    }
    if len(folders) == 2:
        first, second = rows.values()
        rows["second - first"] = list(np.array(second, float) - np.array(first, float))

    for who in GROUPS:
        print(f"{who}: {', '.join(noun for noun, named in of_noun.items() if named == who)}")
    print(f"| Acc@0.5 [95 %] | {' | '.join(f'{who} ({(groups == who).sum():,})' for who in GROUPS)} |")
    print("|---|---|---|---|")
    for name, values in rows.items():
        found = [interval(np.array(values, float)[groups == who].tolist(), images[groups == who]) for who in GROUPS]
        print(f"| {name} | {' | '.join(f'{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]' for one in found)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of `vpp eval run` on scenes of the split heldout")
    main(parser.parse_args().folders)
