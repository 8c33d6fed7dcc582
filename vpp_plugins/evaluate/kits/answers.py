"""A kit's questions, answered: a request for a box with the box in the kit's frame, all else as the model says it."""

import re
from collections.abc import Sequence

from PIL import Image

from vpp_plugins.boxes import answer_of
from vpp_plugins.evaluate.run import Asker

_REQUEST = re.compile(r"bounding box.*?region this sentence describes:\s*(?P<expr>.+?)\s*\Z", re.DOTALL | re.IGNORECASE)
"""How lmms-eval (refcoco_bbox_rec) and VLMEvalKit (RefCOCO) ask for a box."""


def answer(
    asker: Asker, images: Sequence[Image.Image], questions: Sequence[str], *, max_new_tokens: int = 128
) -> list[str]:
    """Answer one question per image.

    A request for a box is asked in the family's own words and answered `[x1, y1, x2, y2]`, 0 to 1 on the original
    image, four decimals; an answer that holds no box stays as the model wrote it, without its thoughts: the kit would
    find a box in them.
    """
    requests = [_REQUEST.search(question) for question in questions]
    put = [
        question if request is None else asker.codec.prompt(request["expr"])
        for question, request in zip(questions, requests, strict=True)
    ]
    given = asker.ask(images, put, max_new_tokens=max_new_tokens, num_beams=1)
    answers = []
    for request, (text, meta) in zip(requests, given, strict=True):
        boxes = () if request is None else asker.codec.decode(text, meta).boxes_xyxy_px
        height, width = meta.size_hw
        answers += [
            "[{:.4f}, {:.4f}, {:.4f}, {:.4f}]".format(*(v / s for v, s in zip(box, (width, height) * 2, strict=True)))
            for box in boxes[:1]
        ] or [text if request is None else answer_of(text)]
    return answers
