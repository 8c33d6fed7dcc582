"""The demo's page: one file that opens without a server or a network."""

import html
from pathlib import Path

from PIL import Image

from vpp_plugins.evaluate.demo import Answer, DemoResult, Question
from vpp_plugins.images import draw_boxes, jpeg_url
from vpp_plugins.prompts import VPP, draw_overlay, draw_prompt, draw_queries, draw_sensitivity
from vpp_plugins.prompts.generators import DetectionHeads

TRUTH, COLOURS = "#2e9e4f", ("#4363d8", "#f58231")
STYLE = (
    """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 84rem; padding: 2rem 1.5rem 4rem;
       color: #1d2129; background: #f6f7f9 }
h1, h2 { line-height: 1.2 } h1 { margin: 0 0 .5rem } h2 { margin: 2.5rem 0 1rem }
p { max-width: 50rem; color: #4a5160 }
b.truth, b.first, b.second { font-weight: 600 }
.truth { color: TRUTH } .first { color: FIRST } .second { color: SECOND }
table { border-collapse: collapse; background: #fff; border-radius: .5rem }
td, th { padding: .4rem 1rem; text-align: right; border-bottom: 1px solid #e3e6ea }
td:first-child, th:first-child { text-align: left } tr:last-child td { border: 0 }
th { color: #4a5160; font-weight: 500 }
.axes { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: center } .axes p { max-width: 26rem }
.axes img { width: 16rem; border: 1px solid #e3e6ea }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.25rem }
figure { margin: 0; padding: .75rem; background: #fff; border: 1px solid #e3e6ea; border-radius: .75rem }
figure > img { width: 100%; height: 19rem; object-fit: contain; background: #eceef1; border-radius: .4rem }
figcaption { margin: .6rem 0; font-weight: 600 }
.answer { display: grid; grid-template-columns: 6.5rem 1fr auto; gap: .5rem; font-size: .85rem; align-items: baseline }
.answer code { overflow-wrap: anywhere; color: #4a5160 } .hit { color: TRUTH } .miss { color: #c0392b }
.inside { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; margin-top: .6rem }
.inside span { font-size: .75rem; color: #6b7280 } .inside img { width: 100%; aspect-ratio: 1; object-fit: contain;
              display: block; background: #eceef1; border-radius: .4rem }
""".replace("TRUTH", TRUTH)
    .replace("FIRST", COLOURS[0])
    .replace("SECOND", COLOURS[1])
)


Detector = tuple[DetectionHeads, list[str]]
"""A detector's heads and the names of its classes."""


def write_page(result: DemoResult, vpp: VPP, folder: Path, detector: Detector | None = None) -> Path:
    """Write `index.html`: scores, the learned axes, and every shown image with the truth and the answers on it.

    Beside each image stand the axes as the vision encoder sees them on it, and the boxes of the local queries;
    without the heads of their `detector`, what the local tokens depend on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cards = "\n".join(_card(result, index, vpp, detector) for index in result.shown)
    path = folder / "index.html"
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>vpp-plugins: the pocket model grounds images</title><style>{STYLE}</style></head><body>
<h1>The pocket model grounds images</h1>
<p>A small LLaVA, trained on composed scenes, says where things are: once with Visual Position Prompts, and once,
trained the same way, without. Images and expressions were chosen by a fixed rule, not by the result.
<b class="truth">Green</b> is the truth{_legend(result)}.</p>
{_scores(result)}
{_axes(vpp)}
<h2>Images</h2>
<div class="cards">
{cards}
</div>
</body></html>
""",
        encoding="utf-8",
    )
    return path


def _legend(result: DemoResult) -> str:
    words = zip(result.answers, (("first", "blue"), ("second", "orange")), strict=False)
    return "".join(f', <b class="{css}">{colour}</b> {html.escape(name)}' for name, (css, colour) in words)


def _scores(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{scores.acc_50:.3f}</td><td>{result.controls[name].acc_50:.3f}</td>"
        f"<td>{scores.mean_iou:.3f}</td><td>{scores.without_box}</td><td>{scores.count}</td></tr>"
        for name, scores in result.scores.items()
    )
    titles = ("model", "Acc@0.5", "with shuffled expressions", "mean IoU", "answers without a box", "expressions")
    return f"<table><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>{rows}</table>"


def _axes(vpp: VPP) -> str:
    if vpp.global_vpp is None:
        return ""
    return (
        f'<h2>The learned axes</h2><div class="axes">{_image(draw_prompt(vpp.global_vpp), "the learned axes")}'
        "<p>The global prompt after training. A band along its edges is blended into every image, with a weight of "
        f"{1 - vpp.global_vpp.alpha:.2f}.</p></div>"
    )


def _card(result: DemoResult, index: int, vpp: VPP, detector: Detector | None) -> str:
    question = result.questions[index]
    answers = {name: given[index] for name, given in result.answers.items()}
    found = [(a.grounding.boxes[0], colour) for a, colour in _coloured(answers) if a.grounding.boxes]
    boxes, colours = zip((question.truth, TRUTH), *found, strict=True)
    return (
        f"<figure>{_image(draw_boxes(question.scene.image, boxes, colours=colours), question.expression)}"
        f"<figcaption>{html.escape(question.expression)}</figcaption>"
        f"{''.join(_answer(name, answer, place) for place, (name, answer) in enumerate(answers.items()))}"
        f'<div class="inside">{_inside(question, vpp, detector)}</div></figure>'
    )


def _coloured(answers: dict[str, Answer]) -> list[tuple[Answer, str]]:
    return list(zip(answers.values(), COLOURS, strict=False))


def _answer(name: str, answer: Answer, place: int) -> str:
    return (
        f'<div class="answer"><b class="{("first", "second")[place]}">{html.escape(name)}</b>'
        f"<code>{html.escape(answer.grounding.text)}</code>"
        f'<span class="{"hit" if answer.iou >= 0.5 else "miss"}">IoU {answer.iou:.2f}</span></div>'
    )


def _inside(question: Question, vpp: VPP, detector: Detector | None) -> str:
    parts = []
    if vpp.global_vpp is not None:
        seen = draw_overlay(vpp.global_vpp, question.scene.image, gain=6)
        parts.append(f"<span>{_image(seen, 'axes')}the axes on it, 6 times as strong</span>")
    if vpp.local_vpp is not None and detector is not None:
        seen = draw_queries(vpp, *detector, question.scene.image)
        parts.append(f"<span>{_image(seen, 'queries')}what the local queries see</span>")
    elif vpp.local_vpp is not None:
        seen = draw_sensitivity(vpp, question.scene.image)
        parts.append(f"<span>{_image(seen, 'sensitivity')}bright: what the tokens depend on</span>")
    return "".join(parts)


def _image(image: Image.Image, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="{jpeg_url(image)}">'
