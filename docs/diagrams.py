"""The pages' drawings, each in light and dark: how VPP enters a host, and what the pocket study found.

`python -m docs.pictures` calls it. The study's numbers are read from out/studies/pocket where that is, and kept in
docs/study.json, from which they are drawn elsewhere.
"""

import html
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parent
STUDY, NUMBERS = DOCS.parent / "out/studies/pocket", DOCS / "study.json"
THEMES = {
    "light": {"ink": "#1f2937", "line": "#6b7280", "host": "#e5e7eb", "global": "#fde68a", "local": "#bfdbfe"},
    "dark": {"ink": "#e5e7eb", "line": "#9ca3af", "host": "#374151", "global": "#854d0e", "local": "#1e40af"},
}
ARMS = {"none": "#6b7280", "global": "#d97706", "local": "#2563eb", "both": "#9333ea", "untrained": "#059669"}
DARK_ARMS = {"none": "#9ca3af", "global": "#fbbf24", "local": "#60a5fa", "both": "#c084fc", "untrained": "#34d399"}
SETS = {"test": "test scenes", "unseen": "unseen nouns", "photos": "photographs"}

BOXES = [  # left, top, width, height, words, kind
    (10, 10, 100, 44, "image", "host"),
    (150, 10, 130, 44, "axes, blended in", "global"),
    (320, 10, 120, 44, "vision encoder", "host"),
    (480, 10, 90, 44, "projector", "host"),
    (10, 100, 100, 44, "letterboxed", "host"),
    (150, 100, 130, 44, "detector", "local"),
    (320, 100, 120, 44, "N queries", "local"),
    (480, 100, 90, 44, "projector", "local"),
    (10, 190, 100, 44, "text", "host"),
    (150, 190, 290, 44, "… image tokens  <|vpp|> x N  words …", "host"),
    (480, 190, 90, 44, "embedding", "host"),
    (610, 10, 130, 224, "language model", "host"),
    (780, 100, 100, 44, "[0.1, 0.28, …]", "host"),
]
ARROWS = (
    "M110 32H147 M280 32H317 M440 32H477 M570 32H607 M60 54V97 M215 54V97 M110 122H147 M280 122H317 M440 122H477 "
    "M525 144V187 M110 212H147 M440 212H477 M570 212H607 M740 122H777"
)


def draw_all(images: Path) -> None:
    if (STUDY / "study.json").is_file():
        NUMBERS.write_text(json.dumps(list(read_study(STUDY)), indent=None, separators=(",", ":")) + "\n")
    points = json.loads(NUMBERS.read_text())
    for theme in THEMES:
        (images / f"architecture-{theme}.svg").write_text(architecture(THEMES[theme]))
        draw_curves(points, images / f"curves-{theme}.svg", theme)
        draw_ends(points, images / f"study-{theme}.svg", theme)


def architecture(theme: dict[str, str]) -> str:
    """Return the drawing of what VPP adds to a host: the coloured boxes."""
    shapes = "".join(_box(theme, *box) for box in BOXES)
    arrows = "".join(f'<path d="{path}" marker-end="url(#tip)"/>' for path in re.findall(r"M[^M]*\d", ARROWS))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 890 245" font-family="sans-serif" font-size="13">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{theme["line"]}"/></marker></defs>'
        f'{shapes}<g stroke="{theme["line"]}" stroke-width="1.5" fill="none">{arrows}</g></svg>\n'
    )


def _box(theme: dict[str, str], left: int, top: int, width: int, height: int, words: str, kind: str) -> str:
    at = f'x="{left + width / 2}" y="{top + height / 2 + 5}" text-anchor="middle"'
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="{theme[kind]}"/>'
        f'<text {at} fill="{theme["ink"]}">{html.escape(words)}</text>'
    )


def read_study(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the evaluated checkpoints of a study: arm, seed, set, step, CPU minutes, accuracies with intervals."""
    for path in sorted(folder.glob("*/eval/*/*/results.json")):
        run, _, place, name, _ = path.relative_to(folder).parts
        arm, _, seed = run.rpartition("-")
        cost = json.loads((folder / run / "run" / place / "cost.json").read_text())
        figures = json.loads(path.read_text())["figures"]
        minutes = round((cost["cpu_seconds"] + cost["cpu_seconds_saved"]) / 60, 1)
        shares = {key: [round(figures[key][end], 3) for end in ("mean", "low", "high")] for key in ("acc_50", "acc_75")}
        yield {"arm": arm, "seed": int(seed), "set": name, "step": cost["step"], "minutes": minutes, **shares}


def draw_curves(points: Sequence[dict[str, Any]], target: Path, theme: str) -> None:
    """Draw the accuracy on test scenes over steps and over CPU minutes: each seed thin, the mean of an arm's thick."""
    panels = [("acc_50", "step", "steps"), ("acc_75", "step", "steps")]
    panels += [("acc_50", "minutes", "CPU minutes"), ("acc_75", "minutes", "CPU minutes")]
    with _figure(theme, (11, 3), len(panels), target) as axes:
        for panel, (share, over, label) in zip(axes, panels, strict=True):
            for arm, colour in _arms(points, theme):
                own = [one for one in points if (one["arm"], one["set"]) == (arm, "test")]
                seeds = sorted({one["seed"] for one in own})
                curves = [sorted((one[over], one[share][0]) for one in own if one["seed"] == seed) for seed in seeds]
                for curve in curves:
                    panel.plot(*zip(*curve, strict=True), color=colour, linewidth=0.8, alpha=0.5)
                panel.plot(*np.mean(curves, axis=0).T, "o-", color=colour, label=arm, markersize=3)
            panel.set(xlabel=label, title=f"Acc@0.{share[-2:]}".replace("0.50", "0.5"), ylim=(0, 0.85))
        axes[0].legend(frameon=False, fontsize=8)


def draw_ends(points: Sequence[dict[str, Any]], target: Path, theme: str) -> None:
    """Draw what each arm reaches at the end, by set and seed, with its control; bars are intervals over images."""
    last = max(one["step"] for one in points)
    with _figure(theme, (11, 3.2), len(SETS), target) as axes:
        for panel, (name, title) in zip(axes, SETS.items(), strict=True):
            arms = _arms(points, theme)
            for row, (arm, colour) in enumerate(arms):
                for control, marker, below in ((name, "o", -0.36), (f"{name}-shuffled", "x", 0.12)):
                    for one in points:
                        if (one["arm"], one["set"], one["step"]) == (arm, control, last):
                            mean, low, high = one["acc_50"]
                            place = row + below + 0.12 * one["seed"]
                            panel.plot([low, high], [place] * 2, color=colour, linewidth=1.5)
                            panel.plot([mean], [place], marker, color=colour, markersize=5)
            panel.set(title=title, xlabel="Acc@0.5", xlim=(0, 0.85), yticks=range(len(arms)))
            panel.set_yticklabels([arm for arm, _ in arms])
            panel.invert_yaxis()


def _arms(points: Sequence[dict[str, Any]], theme: str) -> list[tuple[str, str]]:
    here, colours = {one["arm"] for one in points}, ARMS if theme == "light" else DARK_ARMS
    return [(arm, colour) for arm, colour in colours.items() if arm in here]


@contextmanager
def _figure(theme: str, size: tuple[float, float], panels: int, target: Path) -> Iterator[Sequence[Any]]:
    """Give panels side by side in a theme's colours, on no ground; the same numbers give the same SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    coloured = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color", "axes.titlecolor")
    ink = dict.fromkeys(coloured, THEMES[theme]["ink"])
    with rc_context({**ink, "axes.facecolor": "none", "svg.hashsalt": "vpp"}):
        figure = Figure(figsize=size, layout="constrained")
        axes: Sequence[Any] = figure.subplots(1, panels)
        for panel in axes:
            panel.spines[["top", "right"]].set_visible(False)
        yield axes
        figure.savefig(target, transparent=True, metadata={"Date": None})
