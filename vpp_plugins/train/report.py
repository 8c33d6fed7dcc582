"""The page of a run: its curves, its recipe, its data and what it ran with, in a file that opens without a network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpp_plugins.report import curve, write_page

CURVES = (
    ("Loss", ("loss",)),
    ("Acc@0.5 and mean IoU", ("eval_acc_50", "eval_mean_iou")),
    ("Loss on the chats to keep", ("kept_loss",)),
    ("Learning rates", ("lr/",)),
    ("Gradient norm, before clipping", ("grad_norm",)),
    ("Samples per second", ("samples_per_second",)),
)
Points = list[tuple[float, float]]


def write_training_page(
    path: Path,
    about: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    skipped: Sequence[str] = (),
    time: str = "",
) -> Path:
    """Write the page of a run from what `run.json` holds, and from Trainer's log; `time` says where it went."""
    if "learning_rate" in about["recipe"]:
        unused = {"learning_rates": "not used: learning_rate holds for every part that lr does not name"}
        about = {**about, "recipe": {**about["recipe"], **unused}}
    steps = max((int(entry["step"]) for entry in history if "step" in entry), default=0)
    curves = [(title, lines) for title, names in CURVES if (lines := _lines(history, names))]
    tables = (("Recipe", "recipe"), ("Faults of the data", "faults"), ("Versions", "versions"))
    return write_page(
        path,
        "training",
        title=str(about["recipe"].get("output_dir", "A run")),
        summary=f"{about['samples']:,} samples, {steps:,} steps. Data SHA-256 {about['data_sha256']}. {time}",
        curves=[(title, curve(lines, x="step")) for title, lines in curves],
        skipped=skipped,
        tables=[
            (title, [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in facts.items()])
            for title, facts in ((title, about.get(key, {})) for title, key in tables)
        ],
    )


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
