"""Write trained arms into the folder of shipped weights.

python examples/pocket/ship.py runs/vpp2/checkpoint.pt runs/plain2/checkpoint.pt \
        --heads runs/vpp/checkpoint.pt --detector runs/detector/detector.pt
"""

import argparse
from pathlib import Path

import torch
from assemble import assemble

from vpp_plugins.pocket import FOLDER, save_detection_heads, save_pocket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--heads", type=Path, help="stage 1's checkpoint of the arm with VPP, for the detector's heads")
    parser.add_argument("--detector", type=Path, help="pretrain_detector.py's result, for the names of its classes")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    for checkpoint in args.checkpoints:
        model, _, tokenizer = assemble(checkpoint)
        save_pocket(model, tokenizer, args.out)
    if args.heads and args.detector:
        average = torch.load(args.heads, weights_only=True)["average"]
        heads = {name.removeprefix("heads."): v for name, v in average.items() if name.startswith("heads.")}
        classes: dict[str, int] = torch.load(args.detector, weights_only=True)["classes"]
        save_detection_heads(heads, sorted(classes, key=classes.__getitem__), args.out)
    for path in sorted(args.out.iterdir()):
        path.chmod(0o644)
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
