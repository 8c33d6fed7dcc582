"""Make the shipped weights of a model's two trained folders, and say how to evaluate them.

vpp train examples/recipes/pocket.toml
vpp train examples/recipes/pocket.toml --set vpp=none --set output_dir=out/pocket-none
python examples/pocket.py out/pocket/final out/pocket-none/final

Of SmolLM2 it is what smollm2-lora.toml trained, both arms:
python examples/pocket.py --name smollm2 out/smollm2-lora/final out/smollm2-none-lora/final
"""

import argparse
import shutil
from pathlib import Path

from vpp_plugins import is_attached
from vpp_plugins.attach import CARD
from vpp_plugins.evaluate import load_grounder
from vpp_plugins.files import write_manifest
from vpp_plugins.pocket import FOLDER, SMOLLM2_FOLDER, load_pocket, save_pocket, save_smollm2

EVALUATE = """
To evaluate them, for SPLIT test (unseen backgrounds) and heldout (unseen nouns too), and MODEL {name} and
{name}-without-vpp; with --data photos the committed photographs are asked about:

vpp data scenes --out out/scenes/SPLIT --split SPLIT --count 300 --size 320
vpp eval --model MODEL --data out/scenes/SPLIT --out out/eval/SPLIT/MODEL
vpp eval --model MODEL --data out/scenes/SPLIT --out out/eval/SPLIT/MODEL-shuffled --shuffled
vpp eval compare out/eval/SPLIT/{name}-without-vpp out/eval/SPLIT/{name} --out out/eval/SPLIT/compare.html
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("with_vpp", help="folder that `vpp train` wrote")
    parser.add_argument("without_vpp", help="the same, trained with --set vpp=none")
    parser.add_argument(
        "--name", choices=("pocket", "smollm2"), default="pocket", help="which model it is; pocket unless named"
    )
    parser.add_argument("--out", type=Path, help="folder to write; where the library looks for them unless named")
    args = parser.parse_args()
    out = args.out or (FOLDER if args.name == "pocket" else SMOLLM2_FOLDER)
    prompted, bare = (load_grounder(one, dtype="float32", device="cpu") for one in (args.with_vpp, args.without_vpp))
    if not is_attached(prompted.model) or is_attached(bare.model):
        parser.error("the first folder must be of a model with prompts, and the second of one without.")
    for grounder in (prompted, bare):
        if args.name == "smollm2":
            save_smollm2(grounder.model, out)
        else:
            save_pocket(grounder.model, bare.processor.tokenizer, out)  # the other one's has <|vpp|>
    if args.name == "smollm2":  # whose prompts are an add-on to share
        shutil.copy(Path(args.with_vpp) / CARD, out / CARD)
        write_manifest(out)
    for vpp in (True, False):
        load_pocket(vpp, out, name=args.name)  # raises where anything is missing or does not fit
    for path in sorted(out.iterdir()):
        path.chmod(0o644)
        print(f"{path.stat().st_size:>10,} {path.name}")
    print(EVALUATE.format(name=args.name))


if __name__ == "__main__":
    main()
