"""Run the benchmarks, print a row for each bar, and write `out/bench/results.json`."""

import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import convert
from benchmarks.attach_cost import measure

OUT = Path("out/bench/results.json")


def main() -> int:
    """Return 1 if a bar is missed."""
    torch.set_num_threads(1)
    rows = measure()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    conversion = convert.measure()
    results = [*(row.as_dict() for row in rows), {"name": "converting VPP-LLaVA", **asdict(conversion)}]
    OUT.write_text(json.dumps(results, indent=2) + "\n")
    table = Table(title=f"{platform.machine()}, one thread, torch {torch.__version__}")
    for heading in ("measurement", "median", "95 % interval", "bar", "status"):
        table.add_column(heading, justify="left" if heading == "measurement" else "right")
    for row in rows:
        low, high = row.interval
        table.add_row(row.name, f"{row.value:.3f} ms", f"{low:.3f} to {high:.3f}", f"{row.bar:.1f} ms", row.status)
    Console().print(table)
    print(conversion)
    print(f"written to {OUT}")
    return int(any(row.status == "fail" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
