"""How the local prompt's cost grows: `python -m benchmarks.curves`, on one thread of the CPU, takes three minutes.

Writes the numbers to docs/local-prompt.json and their image to docs/local-prompt.svg, and prints the table of
docs/performance.md.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.floor import arithmetic, best_rate, counted
from benchmarks.hosts import attach, build_host, plain_inputs, prompted_inputs, sharing
from benchmarks.rows import interleaved
from vpp_plugins.prompts.generators import DETR, build_detr

NUMBERS, IMAGE = Path("docs/local-prompt.json"), Path("docs/local-prompt.svg")
SIDE, QUERIES, TEXT_TOKENS = 640, 100, 40
HOST = {"hidden_size": 1024, "intermediate_size": 2816, "layers": 8, "heads": 8}
INK = "#7d8590"
"""A grey that is read on light and on dark pages."""
CURVES = {
    "size": "side of the images, pixels",
    "queries": "queries",
    "batch": "images of a batch",
    "prompt": "images of a prompt",
}


def measure(rounds: int = 5) -> dict[str, Any]:
    """Return every curve's points; milliseconds are medians of the rounds."""
    detr = build_detr().eval()
    rate = best_rate()
    points = [("size", side, (side, 1, QUERIES)) for side in (320, 480, 640, 800)]
    points += [("queries", queries, (SIDE, 1, queries)) for queries in (25, 100, 300)]
    points += [("batch", images, (SIDE, images, QUERIES)) for images in (1, 2, 4)]
    found = []
    for curve, value, sizes in points:
        seconds, work = _detector(detr, *sizes, rounds), arithmetic(*sizes)
        found.append(_point(curve, value, seconds, work, rate))
    for loaded in (1, 2, 4):
        seconds, work = _prompt(detr, loaded, rounds)
        found.append(_point("prompt", loaded, seconds, work, rate))
    return {"gflop_per_second": round(rate, 1), "torch": torch.__version__, "threads": 1, "points": found}


def _detector(detr: DETR, side: int, images: int, queries: int, rounds: int) -> float:
    net, pixels = _with_queries(detr, queries), torch.randn(images, 3, side, side)
    return statistics.median(interleaved({"it": lambda: net(pixels)}, rounds=rounds, warm_up=1)["it"])


def _prompt(detr: DETR, images: int, rounds: int) -> tuple[float, dict[str, float]]:
    """Return what VPP adds to a prefill with these images, and the arithmetic of that.

    The detector sees each, and the language model takes 100 more tokens for each.
    """
    host = build_host(**HOST)
    attached = attach(sharing(host), QUERIES, {}, SIDE)
    attached.vpp.local_vpp.generator.load_state_dict(detr.state_dict())
    plain, longer = (plain_inputs(TEXT_TOKENS, extra, images) for extra in (0, QUERIES))
    prompted = prompted_inputs(TEXT_TOKENS, QUERIES, images, SIDE)
    variants = {"bare": lambda: host(**plain), "attached": lambda: attached(**prompted)}
    times = interleaved(variants, rounds=rounds, warm_up=1)
    added = [one - other for one, other in zip(times["attached"], times["bare"], strict=True)]
    with counted(host) as with_them:
        host(**longer)
    with counted(host) as without:
        host(**plain)
    work, flops = arithmetic(SIDE, images, QUERIES), with_them.flops - without.flops
    more = {"gflop": flops, "gflop_winograd": flops, "gbyte": with_them.bytes - without.bytes}
    return statistics.median(added), {name: round(work[name] + more[name] / 1e9, 3) for name in work}


def _point(curve: str, value: int, seconds: float, work: dict[str, float], rate: float) -> dict[str, Any]:
    floor = work["gflop_winograd"] / rate
    times = {"ms": round(1000 * seconds, 1), "floor_ms": round(1000 * floor, 1)}
    return {"curve": curve, "value": value, **times, **work}


def _with_queries(detr: DETR, queries: int) -> DETR:
    if queries == QUERIES:
        return detr
    other = build_detr(num_queries=queries).eval()
    other.load_state_dict({**detr.state_dict(), "query_embed.weight": other.query_embed.weight})
    return other


def table(points: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the page's table."""
    yield "| | | ms | GFLOP | with Winograd | GB moved | floor, ms | floor / measured |"
    yield "|---|---|---|---|---|---|---|---|"
    for point in points:
        work = f"{point['gflop']:.1f} | {point['gflop_winograd']:.1f} | {point['gbyte']:.2f}"
        share = f"{point['floor_ms']:.0f} | {point['floor_ms'] / point['ms']:.2f}"
        yield f"| {point['curve']} | {point['value']} | {point['ms']:.0f} | {work} | {share} |"


def draw(points: list[dict[str, Any]], target: Path) -> None:
    """Draw each curve beside its floor."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inked = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    with rc_context({**dict.fromkeys(inked, INK), "svg.hashsalt": "vpp"}):  # the same numbers give the same file
        figure = Figure(figsize=(12, 3), layout="constrained")
        panels = figure.subplots(1, len(CURVES))
        for (curve, label), panel in zip(CURVES.items(), panels, strict=True):
            shown = [point for point in points if point["curve"] == curve]
            values = [point["value"] for point in shown]
            panel.plot(values, [point["ms"] / 1000 for point in shown], "o-", color="#4f80e6", label="measured")
            panel.plot(values, [point["floor_ms"] / 1000 for point in shown], "--", color=INK, label="floor")
            panel.set(xlabel=label, xticks=values, ylim=(0, None), facecolor="none")
        panels[0].set_ylabel("seconds")
        panels[0].legend(frameon=False)
        figure.savefig(target, transparent=True, metadata={"Date": None})


def main() -> None:
    """Measure, write and print."""
    torch.set_num_threads(1)
    with torch.no_grad():
        found = measure()
    NUMBERS.write_text(json.dumps(found, indent=1) + "\n")
    draw(found["points"], IMAGE)
    print("\n".join(table(found["points"])))


if __name__ == "__main__":
    main()
