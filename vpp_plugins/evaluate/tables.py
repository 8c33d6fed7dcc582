"""The tables of a page: figures with their intervals, how answers were read, and groups of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from vpp_plugins.evaluate.compare import Comparison
from vpp_plugins.evaluate.page import escaped

FIGURES = {"acc_50": "Acc@0.5", "acc_75": "Acc@0.75", "acc_90": "Acc@0.9", "mean_iou": "mean IoU"}
"""What readers call each figure that has an interval."""

MEANINGS = {
    "ok": "a box inside the image",
    "clipped": "a box that reaches beyond the image",
    "inverted": "a box with its corners in the wrong order",
    "unparsable": "no box that the protocol reads",
    "none": "the answer says that there is nothing",
    "unreadable": "the image could not be read, so nothing was asked",
}
"""What each status of an answer says, for a reader of the page."""


def figures_table(columns: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return accuracies and mean IoU in percent, with their intervals, of one or more evaluations by title."""
    lines = [
        f"<tr><td>{label}</td>"
        + "".join(f"<td>{_with_interval(figures[key])}</td>" for _, figures in columns)
        + "</tr>"
        for key, label in FIGURES.items()
    ]
    return f"<table>{_head(columns)}{''.join(lines)}</table>"


def statuses_table(columns: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return how many answers were read how, of one or more evaluations by title."""
    lines = [
        f"<tr><td>{status}</td>"
        + "".join(f"<td>{figures['statuses'][status]}</td>" for _, figures in columns)
        + f'<td class="meaning">{meaning}</td></tr>'
        for status, meaning in MEANINGS.items()
    ]
    return f"<table>{_head([*columns, ('', None)])}{''.join(lines)}</table>"


def _head(columns: Sequence[tuple[str, Any]]) -> str:
    return "<tr><th></th>" + "".join(f"<th>{name}</th>" for name, _ in columns) + "</tr>"


def _with_interval(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['mean']:.1f} <small>{interval_text(figure)}</small>"


def interval_text(figure: Mapping[str, Any]) -> str:
    """Return a figure's interval in percent, and how it was found where that is not the bootstrap."""
    named = "" if figure["method"] == "bootstrap" else f" ({figure['method']})"
    return f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}{named}"


def groups_table(title: str, groups: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the figures of the 40 largest groups of rows under a heading; nothing where there are no groups."""
    if not groups:
        return []
    lines = [
        f"<tr><td>{escaped(name)}</td><td>{group['rows']}</td><td>{100 * group['acc_50']:.1f}</td>"
        f"<td>{100 * group['mean_iou']:.1f}</td></tr>"
        for name, group in sorted(groups.items(), key=lambda item: (-item[1]["rows"], item[0]))[:40]
    ]
    more = f"<p>{len(groups) - 40} more are in the results' file.</p>" if len(groups) > 40 else ""
    head = "<tr><th></th><th>rows</th><th>Acc@0.5</th><th>mean IoU</th></tr>"
    return [f"<h2>{title}</h2>", f"<table>{head}{''.join(lines)}</table>{more}"]


def kinds_table(comparison: Comparison) -> list[str]:
    """Return both evaluations' Acc@0.5 by kind of expression under a heading; nothing where kinds are not known."""
    if not comparison.by_kind:
        return []
    lines = [
        f"<tr><td>{escaped(kind)}</td><td>{rows}</td><td>{100 * a:.1f}</td><td>{100 * b:.1f}</td></tr>"
        for kind, (rows, a, b) in comparison.by_kind.items()
    ]
    head = "<tr><th></th><th>rows</th><th>A</th><th>B</th></tr>"
    return ["<h2>Acc@0.5 by kind of expression</h2>", f"<table>{head}{''.join(lines)}</table>"]
