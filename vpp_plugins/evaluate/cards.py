"""Answers as images on a page: the true box, what was answered, and the words of both."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from vpp_plugins.boxes import Box
from vpp_plugins.errors import VPPError
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.curve import COLOURS
from vpp_plugins.evaluate.page import escaped
from vpp_plugins.evaluate.results import Judged
from vpp_plugins.evaluate.rows import Row
from vpp_plugins.images import draw_boxes, jpeg_url, load_image

TRUTH = "#2e9e4f"
SIDE = 480
"""Longest side of an image on the page, pixels."""


def answer_card(images: Mapping[str, Row], *answers: Judged) -> str:
    """Return one or two evaluations' answers to the same row on its image; `images` are rows by id."""
    answer = answers[0].answer
    said = "".join(
        f"<code>{escaped(one.answer.text[:200] or one.answer.error)} (IoU {one.iou:.2f})</code>" for one in answers
    )
    found = [(answer.box, TRUTH), *((one.reading.box, colour) for one, colour in zip(answers, COLOURS, strict=False))]
    image = _image(images, answer, [(box, colour) for box, colour in found if box is not None])
    return f"<figure>{image}<figcaption>{escaped(answer.expression)}{said}</figcaption></figure>"


def caption_card(images: Mapping[str, Row], answer: Answer) -> str:
    """Return a region on its image, with people's words and the model's; `images` are rows by id."""
    words = answer.expression.replace("\n", "; ")[:200]
    said = f"<code>{escaped(answer.text[:200] or answer.error or '(nothing)')}</code>"
    image = _image(images, answer, [(answer.box, TRUTH)])
    return f"<figure>{image}<figcaption>{escaped(words)}{said}</figcaption></figure>"


def _image(images: Mapping[str, Row], answer: Answer, boxes: Sequence[tuple[Box, str]]) -> str:
    try:
        row = images.get(answer.id)
        image = row.load_image() if row is not None else load_image(Path(answer.image))
    except VPPError:
        return "<p>The image is not at hand.</p>"
    drawn = [_drawable(box, image.size) for box, _ in boxes]
    image = draw_boxes(image, drawn, colours=[colour for _, colour in boxes])
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return f'<img alt="{escaped(answer.expression)}" src="{jpeg_url(image)}">'


def _drawable(box: Box, size_wh: tuple[int, int]) -> Box:
    """Return the box with its corners in order, and its edges at most a little beyond the image."""
    (x1, x2), (y1, y2) = (
        sorted(min(max(edge, -side), 2.0 * side) for edge in edges)
        for edges, side in zip((box[0::2], box[1::2]), size_wh, strict=True)
    )
    return x1, y1, x2, y2
