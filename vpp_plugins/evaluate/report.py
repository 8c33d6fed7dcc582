"""One page per evaluation, and one for two of them side by side: a single file that opens without a network."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vpp_plugins.boxes import Box
from vpp_plugins.data.stream import write_whole
from vpp_plugins.draw import draw_boxes, jpeg_url
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.compare import Comparison, Evaluation
from vpp_plugins.evaluate.curve import COLOURS, draw_curves
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import Judged, summarise
from vpp_plugins.evaluate.rows import Row
from vpp_plugins.images import load_image

TRUTH = "#2e9e4f"
SHOWN = 12
"""Pictures on a page."""
SIDE = 480
"""Longest side of a picture on the page, pixels."""

MEANINGS = {
    "ok": "a box inside the picture",
    "clipped": "a box that reaches beyond the picture",
    "inverted": "a box with its corners in the wrong order",
    "unparsable": "no box that the protocol reads",
    "none": "the answer says that there is nothing",
    "unreadable": "the picture could not be read, so nothing was asked",
}
"""What each status of an answer says, for a reader of the page."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 2rem 1.5rem 4rem;
       color: #1d2129; background: #f6f7f9 }
h1, h2 { line-height: 1.2 } h2 { margin: 2.5rem 0 1rem } p, li { max-width: 56rem; color: #4a5160 }
table { border-collapse: collapse; background: #fff } td, th { padding: .35rem 1rem; text-align: right;
       border-bottom: 1px solid #e3e6ea } td:first-child, th:first-child { text-align: left }
th { color: #4a5160; font-weight: 500 } td small { color: #6b7280; margin-left: .4rem }
code { overflow-wrap: anywhere } .facts td { text-align: left } td.meaning { text-align: left; color: #4a5160 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; background: #fff; border: 1px solid #e3e6ea; border-radius: .6rem }
figure img { width: 100%; height: 15rem; object-fit: contain; background: #eceef1 }
figcaption { font-size: .9rem } figcaption code { color: #4a5160; font-size: .8rem; display: block }
svg { background: #fff; border: 1px solid #e3e6ea; border-radius: .6rem; max-width: 100% }
svg text { font: 12px system-ui, sans-serif; fill: #4a5160 }
"""


def write_report(evaluation: Evaluation, path: str | Path, rows: Sequence[Row] | None = None) -> Path:
    """Write the page of one evaluation: figures, curve, worst answers as pictures, protocol, versions and hashes.

    `rows` bring the pictures where the answers do not name their files.
    """
    figures = summarise(evaluation.judged, evaluation.protocol)
    worst = sorted(evaluation.judged, key=lambda one: (one.iou, one.answer.id))[:SHOWN]
    pictures = _pictures(rows)
    body = [
        f"<h1>{_text(_title(evaluation))}</h1>",
        f"<p>{figures['rows']} rows on {figures['pictures']} pictures, protocol <b>{evaluation.protocol.name}</b>. "
        "Behind each figure its 95 % interval, for which pictures were drawn again 2,000 times.</p>",
        _figures([("%", figures)]),
        "<h2>How the answers were read</h2>",
        _statuses([("answers", figures)]),
        "<h2>Accuracy over the overlap that is asked for</h2>",
        draw_curves([("", figures["curve"])]),
        *_groups("By kind of expression", figures["by_kind"]),
        *_groups("By category", figures["by_category"]),
        "<h2>The worst answers</h2>",
        f'<p><b style="color:{TRUTH}">Green</b> is true, <b style="color:{COLOURS[0]}">blue</b> is the answer.</p>',
        '<div class="cards">' + "".join(_card(pictures, one) for one in worst) + "</div>",
        "<h2>How it was measured</h2>",
        _facts(evaluation.settings, evaluation.protocol.source),
    ]
    return _write(path, _title(evaluation), body)


def write_comparison(comparison: Comparison, path: str | Path, rows: Sequence[Row] | None = None) -> Path:
    """Write the page of two evaluations side by side, with the sentences that explain their gap."""
    sides = [("A", comparison.a), ("B", comparison.b)]
    figures = [(name, summarise(side.judged, side.protocol)) for name, side in sides]
    pictures = _pictures(rows)
    pairs = list(zip(comparison.a.judged, comparison.b.judged, strict=True))
    apart = sorted(
        (pair for pair in pairs if pair[0].correct != pair[1].correct), key=lambda p: -abs(p[0].iou - p[1].iou)
    )
    gap = comparison.accuracy
    body = [
        "<h1>"
        + "<br>".join(f"{name}: {_text(_title(side))}, {_text(side.protocol.name)}" for name, side in sides)
        + "</h1>",
        f"<p>B minus A in Acc@0.5: <b>{100 * gap.difference.mean:+.1f} points</b> "
        f"({100 * gap.difference.low:+.1f} to {100 * gap.difference.high:+.1f}). Only A is right in {gap.only_a} rows, "
        f"only B in {gap.only_b} (McNemar's exact test: p = {gap.p_value:.2g}).</p>",
        "<ul>" + "".join(f"<li>{_text(reason)}</li>" for reason in comparison.reasons) + "</ul>",
        _figures([(f"{name}, %", one) for name, one in figures]),
        "<h2>How the answers were read</h2>",
        _statuses(figures),
        "<h2>Accuracy over the overlap that is asked for</h2>",
        draw_curves([(name, one["curve"]) for name, one in figures]),
        *_kinds(comparison),
        "<h2>Where only one is right</h2>",
        f'<p><b style="color:{TRUTH}">Green</b> is true, <b style="color:{COLOURS[0]}">blue</b> is A, '
        f'<b style="color:{COLOURS[1]}">orange</b> is B.</p>',
        '<div class="cards">' + "".join(_card(pictures, *pair) for pair in apart[:SHOWN]) + "</div>",
        *[f"<h2>How {name} was measured</h2>{_facts(side.settings, side.protocol.source)}" for name, side in sides],
    ]
    return _write(path, "Two evaluations", body)


def write_caption_report(
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    answers: Sequence[Answer],
    path: str | Path,
    rows: Sequence[Row] | None = None,
) -> Path:
    """Write the page of a captioning evaluation: the score, and its first regions with what people and model say."""
    pictures = _pictures(rows)
    title = f"{settings.get('model', 'A model')} on {settings.get('data', 'its data')}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p>CIDEr-D <b>{figures['cider']:.3f}</b> (0 to 10) over {figures['regions']} regions, protocol "
        f"<b>{_text(str(settings['protocol']))}</b>; {figures['unreadable']} pictures could not be read. Scores of "
        "other sets of regions do not compare.</p>",
        "<h2>The first regions</h2>",
        f"<p><b style=\"color:{TRUTH}\">Green</b> is the region. Below it people's words, then the model's.</p>",
        '<div class="cards">' + "".join(_caption_card(pictures, one) for one in answers[:SHOWN]) + "</div>",
        "<h2>How it was measured</h2>",
        _facts(settings, protocol(str(settings["protocol"])).source),
    ]
    return _write(path, title, body)


def _caption_card(pictures: Mapping[str, Row], answer: Answer) -> str:
    words = answer.expression.replace("\n", "; ")[:200]
    said = f"<code>{_text(answer.text[:200] or answer.error or '(nothing)')}</code>"
    picture = _picture(pictures, answer, [(answer.box, TRUTH)])
    return f"<figure>{picture}<figcaption>{_text(words)}{said}</figcaption></figure>"


def _title(evaluation: Evaluation) -> str:
    return f"{evaluation.settings.get('model', 'A model')} on {evaluation.settings.get('data', 'its data')}"


def _figures(columns: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    names = {"acc_50": "Acc@0.5", "acc_75": "Acc@0.75", "acc_90": "Acc@0.9", "mean_iou": "mean IoU"}
    lines = [
        f"<tr><td>{label}</td>"
        + "".join(f"<td>{_with_interval(figures[key])}</td>" for _, figures in columns)
        + "</tr>"
        for key, label in names.items()
    ]
    return f"<table>{_head(columns)}{''.join(lines)}</table>"


def _statuses(columns: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    lines = [
        f"<tr><td>{status}</td>"
        + "".join(f"<td>{figures['statuses'][status]}</td>" for _, figures in columns)
        + f'<td class="meaning">{meaning}</td></tr>'
        for status, meaning in MEANINGS.items()
    ]
    return f"<table>{_head([*columns, ('', None)])}{''.join(lines)}</table>"


def _head(columns: Sequence[tuple[str, Any]]) -> str:
    return "<tr><th></th>" + "".join(f"<th>{name}</th>" for name, _ in columns) + "</tr>"


def _with_interval(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['mean']:.1f} <small>{100 * figure['low']:.1f} to {100 * figure['high']:.1f}</small>"


def _groups(title: str, groups: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not groups:
        return []
    lines = [
        f"<tr><td>{_text(name)}</td><td>{group['rows']}</td><td>{100 * group['acc_50']:.1f}</td>"
        f"<td>{100 * group['mean_iou']:.1f}</td></tr>"
        for name, group in sorted(groups.items(), key=lambda item: (-item[1]["rows"], item[0]))[:40]
    ]
    more = f"<p>{len(groups) - 40} more are in the results' file.</p>" if len(groups) > 40 else ""
    head = "<tr><th></th><th>rows</th><th>Acc@0.5</th><th>mean IoU</th></tr>"
    return [f"<h2>{title}</h2>", f"<table>{head}{''.join(lines)}</table>{more}"]


def _kinds(comparison: Comparison) -> list[str]:
    if not comparison.by_kind:
        return []
    lines = [
        f"<tr><td>{_text(kind)}</td><td>{rows}</td><td>{100 * a:.1f}</td><td>{100 * b:.1f}</td></tr>"
        for kind, (rows, a, b) in comparison.by_kind.items()
    ]
    head = "<tr><th></th><th>rows</th><th>A</th><th>B</th></tr>"
    return ["<h2>Acc@0.5 by kind of expression</h2>", f"<table>{head}{''.join(lines)}</table>"]


def _card(pictures: Mapping[str, Row], *answers: Judged) -> str:
    answer = answers[0].answer
    said = "".join(
        f"<code>{_text(one.answer.text[:200] or one.answer.error)} (IoU {one.iou:.2f})</code>" for one in answers
    )
    found = [(answer.box, TRUTH), *((one.reading.box, colour) for one, colour in zip(answers, COLOURS, strict=False))]
    picture = _picture(pictures, answer, [(box, colour) for box, colour in found if box is not None])
    return f"<figure>{picture}<figcaption>{_text(answer.expression)}{said}</figcaption></figure>"


def _picture(pictures: Mapping[str, Row], answer: Answer, boxes: Sequence[tuple[Box, str]]) -> str:
    try:
        row = pictures.get(answer.id)
        picture = row.picture() if row is not None else load_image(Path(answer.image))
    except VPPError:
        return "<p>The picture is not at hand.</p>"
    drawn = [_drawable(box, picture.size) for box, _ in boxes]
    picture = draw_boxes(picture, drawn, colours=[colour for _, colour in boxes])
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return f'<img alt="{_text(answer.expression)}" src="{jpeg_url(picture)}">'


def _drawable(box: Box, size_wh: tuple[int, int]) -> Box:
    """Return the box with its corners in order, and its edges at most a little beyond the picture."""
    (x1, x2), (y1, y2) = (
        sorted(min(max(edge, -side), 2.0 * side) for edge in edges)
        for edges, side in zip((box[0::2], box[1::2]), size_wh, strict=True)
    )
    return x1, y1, x2, y2


def _pictures(rows: Sequence[Row] | None) -> dict[str, Row]:
    return {row.id: row for row in rows or ()}


def _facts(settings: Mapping[str, Any], source: str) -> str:
    """Return what an evaluation says of itself as a table; what is empty is left out."""
    facts = {**settings, "rules": source}
    lines = "".join(
        f"<tr><td>{_text(key.replace('_', ' '))}</td><td><code>{_text(_said(value))}</code></td></tr>"
        for key, value in facts.items()
        if value not in (None, {})
    )
    return f'<table class="facts">{lines}</table>'


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def _write(path: str | Path, title: str, body: Sequence[str]) -> Path:
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    target = Path(path)
    write_whole(target, head + "\n".join(body) + "</html>\n")
    return target


def _text(value: str) -> str:
    return html.escape(value)
