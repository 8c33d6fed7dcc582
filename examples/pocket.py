"""Make the shipped weights of the pocket model's two trained folders, and say how to evaluate them.

vpp train examples/recipes/pocket.toml
vpp train examples/recipes/pocket.toml --set vpp=none --set output_dir=out/pocket-none
python examples/pocket.py out/pocket/final out/pocket-none/final
"""

import argparse
from pathlib import Path

from vpp_plugins import is_attached
from vpp_plugins.evaluate import load_grounder
from vpp_plugins.pocket import FOLDER, load_pocket, save_pocket

EVALUATE = """
To evaluate them, for SPLIT test (unseen backgrounds) and heldout (unseen nouns too), and MODEL pocket and
pocket-without-vpp; with --data photos the committed photographs are asked about:

vpp data scenes --out out/scenes/SPLIT --split SPLIT --count 300 --size 320
vpp eval --model MODEL --data out/scenes/SPLIT --out out/eval/SPLIT/MODEL
vpp eval --model MODEL --data out/scenes/SPLIT --out out/eval/SPLIT/MODEL-shuffled --shuffled
vpp eval compare out/eval/SPLIT/pocket-without-vpp out/eval/SPLIT/pocket --out out/eval/SPLIT/compare.html
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("with_vpp", help="folder that `vpp train` wrote")
    parser.add_argument("without_vpp", help="the same, trained with --set vpp=none")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the library looks for them unless named")
    args = parser.parse_args()
    prompted, bare = (load_grounder(one, dtype="float32", device="cpu") for one in (args.with_vpp, args.without_vpp))
    if not is_attached(prompted.model) or is_attached(bare.model):
        parser.error("the first folder must be of a model with prompts, and the second of one without.")
    for grounder in (prompted, bare):
        save_pocket(grounder.model, bare.processor.tokenizer, args.out)  # the other one's has <|vpp|>
    for vpp in (True, False):
        load_pocket(vpp, args.out)  # raises where anything is missing or does not fit
    for path in sorted(args.out.iterdir()):
        path.chmod(0o644)
        print(f"{path.stat().st_size:>10,} {path.name}")
    print(EVALUATE)


if __name__ == "__main__":
    main()
