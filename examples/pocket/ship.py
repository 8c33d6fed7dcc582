"""Write trained arms into the folder of shipped weights.

python examples/pocket/ship.py runs/vpp/checkpoint.pt runs/plain/checkpoint.pt
"""

import argparse
from pathlib import Path

from assemble import assemble

from vpp_plugins.pocket import save_pocket
from vpp_plugins.pocket.weights import FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    for checkpoint in args.checkpoints:
        model, _, tokenizer = assemble(checkpoint)
        save_pocket(model, tokenizer, args.out)
    for path in sorted(args.out.iterdir()):
        path.chmod(0o644)
        print(f"{path.stat().st_size:>10,} {path.name}")


if __name__ == "__main__":
    main()
