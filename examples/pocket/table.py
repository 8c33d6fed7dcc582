"""Print the table of docs/pocket-model.md from what evaluate.py wrote.

python examples/pocket/table.py docs/pocket-scores.json
"""

import argparse
import json
from pathlib import Path

ARMS = ("VPP", "without VPP")
BLIND = ("random object, boxed perfectly", "full image", "mean training box")


def table(report: dict[str, dict]) -> str:
    """Return a Markdown table: a row per set and way to answer."""
    lines = [
        "| set | answers | Acc@0.5 | mean IoU | Acc@0.5 with shuffled expressions |",
        "|---|---|---|---|---|",
    ]
    for name, scores in report.items():
        for way in (*ARMS, *(way for way in BLIND if way in scores)):
            row = scores[way]
            control = f"{row['shuffled expressions']['acc_50']:.3f}" if way in ARMS else ""
            shown = f"**{way}**" if way in ARMS else way
            cells = (
                f"{name} ({scores['expressions']})",
                shown,
                f"{row['acc_50']:.3f}",
                f"{row['mean_iou']:.3f}",
                control,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    print(table(json.loads(parser.parse_args().scores.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
