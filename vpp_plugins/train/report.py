"""The page of a run: its curves, its recipe, its data and what it ran with, in a file that opens without a network."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpp_plugins.errors import few
from vpp_plugins.evaluate import STYLE
from vpp_plugins.files import whole_file

COLOURS = ("#4363d8", "#f58231", "#2e9e4f", "#911eb4", "#e6194b", "#469990", "#9a6324", "#808000", "#000075", "#808080")
CURVES = (
    ("Loss", ("loss",)),
    ("Acc@0.5 and mean IoU", ("eval_acc_50", "eval_mean_iou")),
    ("Loss on the chats to keep", ("kept_loss",)),
    ("Learning rates", ("lr/",)),
    ("Gradient norm, before clipping", ("grad_norm",)),
    ("Samples per second", ("samples_per_second",)),
)
WIDTH, HEIGHT, MARGIN, LEGEND = 720, 260, 60, 240
Points = list[tuple[float, float]]


def write_page(
    path: Path, about: Mapping[str, Any], history: Sequence[Mapping[str, Any]], skipped: Sequence[str] = ()
) -> None:
    """Write the page of a run from what `run.json` holds, and from Trainer's log."""
    parts = [
        f"<h1>{_text(about['recipe'].get('output_dir', 'A run'))}</h1>",
        f"<p>{_text(_summary(about, history))}</p>",
    ]
    for title, names in CURVES:
        lines = _lines(history, names)
        if lines:
            parts += [f"<h2>{title}</h2>", curve(lines)]
    if skipped:
        listed = "".join(f"<li>{_text(reason)}</li>" for reason in skipped)
        parts.append(f"<h2>{len(skipped)} samples were skipped</h2><ul>{listed}</ul>")
    for title, key in (("Recipe", "recipe"), ("Faults of the data", "faults"), ("Versions", "versions")):
        parts += [f"<h2>{title}</h2>", _table(about.get(key, {}))]
    body = "\n".join(parts)
    page = f'<!doctype html><meta charset="utf-8"><title>Training</title><style>{STYLE}</style>{body}\n'
    with whole_file(path) as file:
        file.write(page.encode())


def curve(lines: Mapping[str, Points]) -> str:
    """Draw lines over the steps as an SVG, from 0 or the lowest value up; a name may be several, joined by commas."""
    every = [point for points in lines.values() for point in points]
    steps, values = [step for step, _ in every], [value for _, value in every]
    left, right, low, high = min(steps), max(steps), min(0.0, *values), max(values)
    across, up = (right - left) or 1.0, (high - low) or 1.0
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = HEIGHT - MARGIN / 2 - share * (HEIGHT - MARGIN)
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e3e6ea"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.0f}" text-anchor="end">{low + share * up:.3g}</text>')
    for step, anchor in ((left, "start"), (right, "end")):
        x = MARGIN + (step - left) / across * (WIDTH - 2 * MARGIN)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 8}" text-anchor="{anchor}">step {step:g}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(
            f"{MARGIN + (step - left) / across * (WIDTH - 2 * MARGIN):.1f},"
            f"{HEIGHT - MARGIN / 2 - (value - low) / up * (HEIGHT - MARGIN):.1f}"
            for step, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = WIDTH - MARGIN + 4, 20 + 14 * number
        shown = _text(few(name.split(", "), most=1))
        parts.append(f'<text x="{x}" y="{y}" style="fill:{colour}"><title>{_text(name)}</title>{shown}</text>')
    width = WIDTH - MARGIN + LEGEND
    box = f'viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def _lines(history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for entry in history:
        for key, value in entry.items():
            if key in names or any(name.endswith("/") and key.startswith(name) for name in names):
                lines.setdefault(key.removeprefix("lr/"), []).append((float(entry["step"]), float(value)))
    alike: dict[tuple[tuple[float, float], ...], list[str]] = {}  # rates that several parts share are one line
    for name, points in lines.items():
        alike.setdefault(tuple(points), []).append(name)
    return {", ".join(names): list(points) for points, names in alike.items()}


def _summary(about: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    steps = max((int(entry["step"]) for entry in history if "step" in entry), default=0)
    return f"{about['samples']:,} samples, {steps:,} steps. Data SHA-256 {about['data_sha256']}."


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}</td>"
        f"<td><code>{_text(value if isinstance(value, str) else json.dumps(value))}</code></td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
