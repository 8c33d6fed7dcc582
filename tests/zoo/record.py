"""Record the coverage of the installed transformers: python -m tests.zoo.record (some minutes)."""

import json
import sys
from pathlib import Path

import torch
import transformers

from tests.zoo.coverage import covered
from tests.zoo.hosts import ARCHITECTURES
from vpp_plugins.testing.coverage import RECORD, Coverage

PAGE = Path(__file__).parents[2] / "docs/coverage.md"
HEADER = ["Model type", "Adapter", "Pixels", "Boxes", "Local prompt", "Global prompt", "Note"]


def main() -> None:
    """Try every architecture, and write the record and the page's table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = []
    for model_type in sorted(ARCHITECTURES):
        rows.append(covered(model_type))
        sys.stdout.write(f"{rows[-1]}\n")
    record = {"transformers": transformers.__version__, "models": [vars(row) for row in rows]}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(f"| {HEADER[0]} |")
    PAGE.write_text(head + table(rows), encoding="utf-8")


def table(rows: list[Coverage]) -> str:
    """Return the rows as the page shows them."""
    lines = [HEADER, ["---"] * len(HEADER), *map(_cells, rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: Coverage) -> list[str]:
    return [
        f"`{row.model_type}`",
        row.adapter,
        row.layout,
        row.box_format,
        row.local_prompt,
        row.global_prompt,
        row.note,
    ]


if __name__ == "__main__":
    main()
