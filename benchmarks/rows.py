"""A row of the results: a measured number, how sure it is, the bar it has to keep, and what became of it."""

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Status = Literal["pass", "fail", "inconclusive", "no bar", "not run"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. `bar` is the most that `value` may be, or with `better="more"` the least."""

    name: str
    value: float | None
    """None where it was not run; `note` then says how it would be."""
    unit: str = ""
    bar: float | None = None
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval of the value; None for what is counted and not timed."""
    better: Literal["less", "more"] = "less"
    note: str = ""

    @property
    def status(self) -> Status:
        """Whether the interval lies on the bar's good side, on its bad side, or across."""
        if self.value is None:
            return "not run"
        if self.bar is None:
            return "no bar"
        low, high = self.interval or (self.value, self.value)
        if self.better == "more":
            low, high, bar = -high, -low, -self.bar
        else:
            bar = self.bar
        return "pass" if high <= bar else "fail" if low > bar else "inconclusive"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "bar": self.bar,
            "better": self.better,
            "interval": self.interval,
            "status": self.status,
            "note": self.note,
        }


def median_row(name: str, samples: Sequence[float], **fields: Any) -> Row:
    """Return a row of the samples' median, with its bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(samples, k=len(samples))) for _ in range(1000))
    return Row(name=name, value=statistics.median(samples), interval=(medians[25], medians[974]), **fields)


def check_same(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise ValueError unless both are the same: a comparison of speed between different results is none.

    `tolerance` is in units of the largest number expected.
    """
    error = float((found - expected).abs().max() / expected.abs().max())
    if error > tolerance:
        raise ValueError(f"{name} gives other numbers, off by {error:.1e} of the largest")


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Return each variant's seconds, one number a round, measured one after another in an order drawn anew each round.

    A busy machine so slows all variants, and each finds the caches as another left them. The clock counts the work of
    this process alone, so that waiting for a processor that others use does not count; on one thread of an idle machine
    it is the time that passes.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    order = random.Random(0)
    with torch.no_grad():
        for round_number in range(warm_up + rounds):
            for name in order.sample(sorted(variants), len(variants)):
                began = clock()
                variants[name]()
                took = clock() - began
                if round_number >= warm_up:
                    times[name].append(took)
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio within each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a JSON list; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    temporary.replace(path)


def markdown(rows: Sequence[Row], title: str) -> str:
    """Return the rows as a Markdown table for the docs."""
    lines = [title, "", "| Measurement | Value | 95 % interval | Bar | Status |", "| --- | --: | --: | --: | --- |"]
    lines += [f"| {' | '.join([row.name, *_cells(row), row.status])} |" for row in rows]
    notes = {row.note: row.name for row in reversed(rows) if row.note}  # one that several share is said once
    lines += ["", *(f"- {name}: {note}" for note, name in reversed(notes.items()))]
    return "\n".join(lines) + "\n"


def show_rows(rows: Sequence[Row], title: str) -> None:
    """Print a table of the rows, and below it what is to be said of them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for heading in ("measurement", "value", "95 % interval", "bar", "status"):
        table.add_column(heading, justify="left" if heading in ("measurement", "status") else "right")
    for row in rows:
        value, interval, bar = _cells(row)
        table.add_row(row.name, value, interval, bar, row.status)
    console = Console()
    console.width = max(console.width, 140)  # a log file has no width
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", highlight=False, soft_wrap=True)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _cells(row: Row) -> tuple[str, str, str]:
    """Return value, interval and bar as words."""
    interval = "" if row.interval is None else f"{_short(row.interval[0])} to {_short(row.interval[1])}"
    value = "" if row.value is None else f"{_short(row.value)} {row.unit}"
    word = "at most" if row.better == "less" else "at least"
    bar = "" if row.bar is None else f"{word} {_short(row.bar)} {row.unit}"
    return value, interval, bar
