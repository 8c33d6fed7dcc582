"""Run the benchmarks, print a row for each bar, and write `out/bench/results.json`."""

import json
import platform
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.attach_cost import measure

OUT = Path("out/bench/results.json")


def main() -> int:
    """Return 1 if a bar is missed."""
    torch.set_num_threads(1)
    rows = measure()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    table = Table(title=f"{platform.machine()}, one thread, torch {torch.__version__}")
    for heading in ("measurement", "median", "95 % interval", "bar", "status"):
        table.add_column(heading, justify="left" if heading == "measurement" else "right")
    for row in rows:
        low, high = row.interval
        table.add_row(row.name, f"{row.value:.3f} ms", f"{low:.3f} to {high:.3f}", f"{row.bar:.1f} ms", row.status)
    Console().print(table)
    print(f"written to {OUT}")
    return int(any(row.status == "fail" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
