"""A kit's questions, answered: a request for a box with the box in the kit's frame, all else as the model says it."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vpp_plugins.boxes import answer_of
from vpp_plugins.errors import VPPError, nearest
from vpp_plugins.evaluate.models import fingerprint_of_model
from vpp_plugins.evaluate.run import Asker, versions
from vpp_plugins.evaluate.settings import answer_settings, differences
from vpp_plugins.files import write_whole
from vpp_plugins.ground import Grounder

MOST_TOKENS = 128
"""How long an answer may be where the kit does not say."""

_REQUEST = re.compile(r"bounding box.*?region this sentence describes:\s*(?P<expr>.+?)\s*\Z", re.DOTALL | re.IGNORECASE)
"""How lmms-eval (refcoco_bbox_rec) and VLMEvalKit (RefCOCO) ask for a box."""
LOADING = ("attn_implementation", "device_map", "revision", "trust_remote_code")
"""What a kit may say, beside a bridge's own arguments, of how the host is loaded: it goes to `from_pretrained`."""


def answer(
    asker: Asker, images: Sequence[Image.Image], questions: Sequence[str], *, max_new_tokens: int = MOST_TOKENS
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


def keep_settings(asker: Asker, file: str | None, *, max_new_tokens: int = MOST_TOKENS) -> None:
    """Write into a JSON file what decides the answers, which a kit's own results do not hold; None warns of that.

    Kits go on with the answers of an earlier run: raises VPPError for a file that holds other settings.
    """
    if file is None:
        warnings.warn(
            "the kit's results will not say which weights, prompts and settings gave the answers: name a file for "
            "them, settings=FILE.json.",
            stacklevel=3,
        )
        return
    path = Path(file)
    about: dict[str, Any] = {"box_format": asker.codec.family, "versions": versions()}
    if isinstance(asker, Grounder):
        about["model_sha256"] = fingerprint_of_model(asker.model)
        about |= answer_settings(asker, {"max_new_tokens": max_new_tokens, "num_beams": 1})
    if path.exists():
        for name, known, now in differences(_read_settings(path), about):
            raise VPPError(
                f"'{file}' holds the settings of another run: its {name} is {known}, and now {now}. Name another file, "
                "and have the kit begin anew, as it goes on with the answers it has."
            )
        return
    write_whole(path, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _read_settings(path: Path) -> dict[str, object]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise VPPError(f"'{path}' does not hold settings: name another file for them.")
    return known


def loading(kit: str, options: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Return a kit's further options, but for unset ones: kits mean nothing by an empty device_map.

    Raises VPPError for one that is none of `LOADING`; `own` are the names that the bridge takes itself.
    """
    takes = (*own, *LOADING)
    for name in options:
        if name not in LOADING:
            raise VPPError(f"the bridge to {kit} knows no '{name}': it takes {', '.join(takes)}.{nearest(name, takes)}")
    return {name: value for name, value in options.items() if value not in (None, "")}
