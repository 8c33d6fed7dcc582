"""One page per evaluation, and one for two of them side by side: a single file that opens without a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.cards import TRUTH, answer_card, caption_card
from vpp_plugins.evaluate.compare import Comparison, Evaluation
from vpp_plugins.evaluate.curve import COLOURS, draw_curves
from vpp_plugins.evaluate.page import escaped, facts_table, write_page
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import summarise
from vpp_plugins.evaluate.rows import Row
from vpp_plugins.evaluate.tables import figures_table, groups_table, kinds_table, statuses_table

SHOWN = 12
"""Images on a page."""


def write_report(evaluation: Evaluation, path: str | Path, rows: Sequence[Row] | None = None) -> Path:
    """Write the page of one evaluation: figures, curve, worst answers as images, protocol, versions and hashes.

    `rows` bring the images where the answers do not name their files.
    """
    figures = summarise(evaluation.judged, evaluation.protocol)
    worst = sorted(evaluation.judged, key=lambda one: (one.iou, one.answer.id))[:SHOWN]
    images = _by_id(rows)
    body = [
        f"<h1>{escaped(_title(evaluation.settings))}</h1>",
        f"<p>{figures['rows']} rows on {figures['images']} images, protocol <b>{evaluation.protocol.name}</b>. "
        "Behind each figure its 95 % interval, for which images were drawn again 2,000 times; where an accuracy is "
        "the same in every image, that tells nothing, and it is Wilson's.</p>",
        figures_table([("%", figures)]),
        "<h2>How the answers were read</h2>",
        statuses_table([("answers", figures)]),
        "<h2>Accuracy over the overlap that is asked for</h2>",
        draw_curves([("", figures["curve"])]),
        *groups_table("By kind of expression", figures["by_kind"]),
        *groups_table("By category", figures["by_category"]),
        "<h2>The worst answers</h2>",
        f'<p><b style="color:{TRUTH}">Green</b> is true, <b style="color:{COLOURS[0]}">blue</b> is the answer.</p>',
        '<div class="cards">' + "".join(answer_card(images, one) for one in worst) + "</div>",
        "<h2>How it was measured</h2>",
        facts_table(evaluation.settings, evaluation.protocol.source),
    ]
    return write_page(path, _title(evaluation.settings), body)


def write_comparison(comparison: Comparison, path: str | Path, rows: Sequence[Row] | None = None) -> Path:
    """Write the page of two evaluations side by side, with the sentences that explain their gap."""
    sides = [("A", comparison.a), ("B", comparison.b)]
    figures = [(name, summarise(side.judged, side.protocol)) for name, side in sides]
    images = _by_id(rows)
    pairs = list(zip(comparison.a.judged, comparison.b.judged, strict=True))
    apart = sorted(
        (pair for pair in pairs if pair[0].correct != pair[1].correct), key=lambda p: -abs(p[0].iou - p[1].iou)
    )
    gap = comparison.accuracy
    body = [
        "<h1>"
        + "<br>".join(
            f"{name}: {escaped(_title(side.settings))}, {escaped(side.protocol.name)}" for name, side in sides
        )
        + "</h1>",
        f"<p>B minus A in Acc@0.5: <b>{100 * gap.difference.mean:+.1f} points</b> "
        f"({100 * gap.difference.low:+.1f} to {100 * gap.difference.high:+.1f}). Only A is right in {gap.only_a} rows, "
        f"only B in {gap.only_b} (McNemar's exact test: p = {gap.p_value:.2g}).</p>",
        "<ul>" + "".join(f"<li>{escaped(reason)}</li>" for reason in comparison.reasons) + "</ul>",
        figures_table([(f"{name}, %", one) for name, one in figures]),
        "<h2>How the answers were read</h2>",
        statuses_table(figures),
        "<h2>Accuracy over the overlap that is asked for</h2>",
        draw_curves([(name, one["curve"]) for name, one in figures]),
        *kinds_table(comparison),
        "<h2>Where only one is right</h2>",
        f'<p><b style="color:{TRUTH}">Green</b> is true, <b style="color:{COLOURS[0]}">blue</b> is A, '
        f'<b style="color:{COLOURS[1]}">orange</b> is B.</p>',
        '<div class="cards">' + "".join(answer_card(images, *pair) for pair in apart[:SHOWN]) + "</div>",
        *[
            f"<h2>How {name} was measured</h2>{facts_table(side.settings, side.protocol.source)}"
            for name, side in sides
        ],
    ]
    return write_page(path, "Two evaluations", body)


def write_caption_report(
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    answers: Sequence[Answer],
    path: str | Path,
    rows: Sequence[Row] | None = None,
) -> Path:
    """Write the page of a captioning evaluation: the score, and its first regions with what people and model say."""
    images = _by_id(rows)
    title = _title(settings)
    meteor = f" and METEOR <b>{figures['meteor']:.3f}</b> (0 to 1)" if "meteor" in figures else ""
    body = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>CIDEr-D <b>{figures['cider']:.3f}</b> (0 to 10){meteor} over {figures['regions']} regions, protocol "
        f"<b>{escaped(str(settings['protocol']))}</b>; {figures['unreadable']} images could not be read. Scores of "
        "other sets of regions do not compare.</p>",
        "<h2>The first regions</h2>",
        f"<p><b style=\"color:{TRUTH}\">Green</b> is the region. Below it people's words, then the model's.</p>",
        '<div class="cards">' + "".join(caption_card(images, one) for one in answers[:SHOWN]) + "</div>",
        "<h2>How it was measured</h2>",
        facts_table(settings, protocol(str(settings["protocol"])).source),
    ]
    return write_page(path, title, body)


def _title(settings: Mapping[str, Any]) -> str:
    return f"{settings.get('model', 'A model')} on {settings.get('data', 'its data')}"


def _by_id(rows: Sequence[Row] | None) -> dict[str, Row]:
    return {row.id: row for row in rows or ()}
