"""Run the benchmarks, print a row for each bar, and write `out/bench/results.json`.

`make bench` runs all of them; `make bench ARGS="host-time cold-start"` some.
"""

import argparse
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from pkgutil import resolve_name

import torch

from benchmarks.rows import Row, markdown, show_rows, write_rows

OUT = Path("out/bench/results.json")
BENCHMARKS = {
    "attach-cost": "benchmarks.attach_cost:measure",
    "host-time": "benchmarks.host_time:measure",
    "training": "benchmarks.training:measure",
    "encodings": "benchmarks.encodings:measure",
    "attention": "benchmarks.attention:measure",
    "local-prompt": "benchmarks.local_prompt:rows",
    "runtimes": "benchmarks.runtimes:measure",
    "evaluation": "benchmarks.evaluation:measure",
    "preprocessing": "benchmarks.preprocessing:measure",
    "cold-start": "benchmarks.cold_start:measure",
    "conversion": "benchmarks.conversion:measure",
    "gpu": "benchmarks.gpu:measure",
}
"""The functions that return rows, imported when they are run."""


def main(arguments: list[str] | None = None) -> int:
    """Return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="where the rows are written (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="write the table as Markdown too, such as benchmarks/results.md")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BENCHMARKS)}")
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in chosen.names or BENCHMARKS:
        began = time.monotonic()
        rows += resolve_name(BENCHMARKS[name])()
        write_rows(rows, chosen.out)  # what is measured is kept if a later one breaks
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    show_rows(rows, machine())
    if chosen.page:
        chosen.page.write_text(markdown(rows, f"Measured {date.today():%d %B %Y}: {machine()}."))  # noqa: DTZ011
    print(f"written to {chosen.out}")
    return int(any(row.status == "fail" for row in rows))


def machine() -> str:
    """Name what was measured on."""
    return f"{_processor()}, {os.cpu_count()} cores, one thread used, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
