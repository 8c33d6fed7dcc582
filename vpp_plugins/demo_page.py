"""The demo's page: one file that opens without a server or a network."""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from vpp_plugins.demo import DemoResult, Question, summary
from vpp_plugins.draw import draw_boxes, draw_overlay, draw_prompt
from vpp_plugins.prompts.vpp import VPP

TRUTH, OURS, TWIN = "#2e9e4f", "#4363d8", "#f58231"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; background: #fff }
h1 { margin-bottom: 0 } .lead { color: #555; max-width: 50rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.5rem }
figure { margin: 0; padding: .75rem; border: 1px solid #ddd; border-radius: .5rem }
figure img { width: 100%; border-radius: .25rem } figcaption { margin-top: .5rem }
.row { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem } .row span { font-size: .8rem; color: #666 }
.key { font-weight: 600 } table { border-collapse: collapse } td, th { padding: .25rem .75rem; text-align: left; border-bottom: 1px solid #ddd }
"""


def write_page(result: DemoResult, vpp: VPP, folder: Path) -> Path:
    """Write `index.html` with every shown picture: truth, answers, the axes on it, and where the local queries look."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = "\n".join(_card(result, index, vpp) for index in result.shown)
    path = folder / "index.html"
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>vpp-plugins: the pocket model grounds pictures</title><style>{STYLE}</style></head><body>
<h1>The pocket model grounds pictures</h1>
<p class="lead">A small LLaVA, trained on composed scenes, answers where things are; once with Visual Position Prompts and once, trained
the same way, without. <span class="key" style="color:{TRUTH}">Green</span> is the truth,
<span class="key" style="color:{OURS}">blue</span> the answer with VPP, <span class="key" style="color:{TWIN}">orange</span> the
twin's. Pictures and expressions were chosen by a fixed rule, not by the result.</p>
{_scores(result)}
{_axes(vpp)}
<h2>Pictures</h2>
<div class="cards">{cards}</div>
</body></html>
""",
        encoding="utf-8",
    )
    return path


def _scores(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{s.acc_50:.3f}</td><td>{result.controls[name].acc_50:.3f}</td>"
        f"<td>{s.mean_iou:.3f}</td><td>{s.count}</td></tr>"
        for name, s in result.scores.items()
    )
    head = "<tr><th>model</th><th>Acc@0.5</th><th>with shuffled expressions</th><th>mean IoU</th><th>expressions</th></tr>"
    return f"<table>{head}{rows}</table><!-- {html.escape(' | '.join(summary(result)))} -->"


def _axes(vpp: VPP) -> str:
    if vpp.global_vpp is None:
        return ""
    return (
        "<h2>The learned axes</h2><p>The global prompt after training; it is blended into every picture with a weight of "
        f"{1 - vpp.global_vpp.alpha:.2f} in a band along the edges.</p>{_image(draw_prompt(vpp.global_vpp), 'the learned axes', 320)}"
    )


def _card(result: DemoResult, index: int, vpp: VPP) -> str:
    question = result.questions[index]
    boxes, colours, words = [question.truth], [TRUTH], []
    for (name, answers), colour in zip(result.answers.items(), (OURS, TWIN), strict=False):
        answer = answers[index]
        words.append(f"{html.escape(name)}: <code>{html.escape(answer.grounding.text)}</code>, IoU {answer.iou:.2f}")
        if answer.grounding.boxes:
            boxes.append(answer.grounding.boxes[0])
            colours.append(colour)
    picture = draw_boxes(question.scene.image, boxes, colours=colours)
    return (
        f"<figure>{_image(picture, question.expression)}"
        f"<figcaption><b>{html.escape(question.expression)}</b><br>{'<br>'.join(words)}</figcaption>"
        f"<div class='row'>{_inside(question, vpp)}</div></figure>"
    )


def _inside(question: Question, vpp: VPP) -> str:
    parts = []
    if vpp.global_vpp is not None:
        seen = draw_overlay(vpp.global_vpp, question.scene.image, gain=6)
        parts.append(f"<span>{_image(seen, 'axes')}the axes on it, 6 times as strong</span>")
    return "".join(parts)


def _image(image: Image.Image, text: str, width: int | None = None) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f' style="width:{width}px"' if width else ""
    return f'<img alt="{html.escape(text)}"{size} src="data:image/jpeg;base64,{data}">'
