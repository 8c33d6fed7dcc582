"""The table: how each family of models writes boxes.

Collected from public code and model cards. Where a family's data truncate and its decoder reads the number as it
stands (Ferret, MiniGPT-v2), we round: the same text space, half the error.
"""

from collections.abc import Mapping
from dataclasses import replace

from vpp_plugins.boxes.codecs import BoxCodec
from vpp_plugins.boxes.frames import Frame
from vpp_plugins.boxes.scales import Binned, Cells, Rounded, Scale
from vpp_plugins.boxes.text import (
    BRACES,
    BRACKETS,
    CORNERS,
    JSON_LABEL,
    JSON_SCOPE,
    OTHER_TAG,
    BoxText,
    finder,
    location_tokens,
    tagged_label,
)
from vpp_plugins.errors import known_name

_LIST = BoxText(box="[{}, {}, {}, {}]", find=finder(BRACKETS))
_SHIKRA = BoxText(box="{:.3f},{:.3f},{:.3f},{:.3f}", between_boxes=";", group="[{boxes}]", find=finder(BRACKETS))
_COGVLM = replace(_SHIKRA, box="{:03d},{:03d},{:03d},{:03d}", group="[[{boxes}]]")
_INTERNVL = BoxText(
    label="<ref>{}</ref>",
    box="[{}, {}, {}, {}]",
    group="{label}<box>[{boxes}]</box>",
    find=finder(tagged_label("<ref>{}</ref>"), BRACKETS),
)
_DEEPSEEK = BoxText(
    label="<|ref|>{}<|/ref|>",
    box="[{}, {}, {}, {}]",
    group="{label}<|det|>[{boxes}]<|/det|>",
    find=finder(tagged_label("<|ref|>{}<|/ref|>"), BRACKETS),
)
_JSON = BoxText(
    label=', "label": {}',
    box="[{}, {}, {}, {}]",
    group='{{"bbox_2d": {boxes}{label}}}',
    between_groups=", ",
    whole="[{}]",
    shared_label=False,
    json_labels=True,
    find=finder(JSON_LABEL, JSON_SCOPE, BRACKETS),
)
_QWEN = BoxText(
    label="<ref>{}</ref>",
    box="<box>({},{}),({},{})</box>",
    between_boxes="",
    find=finder(tagged_label("<ref>{}</ref>"), CORNERS),
)
_QWEN2 = BoxText(
    label="<|object_ref_start|>{}<|object_ref_end|>",
    box="<|box_start|>({},{}),({},{})<|box_end|>",
    between_boxes="",
    find=finder(tagged_label("<|object_ref_start|>{}<|object_ref_end|>"), CORNERS),
)
_MINIGPT = BoxText(
    label="<p>{}</p> ",
    box="{{<{}><{}><{}><{}>}}",
    between_boxes="<delim>",
    between_groups=" ",
    find=finder(tagged_label("<p>{}</p> "), BRACES),
)
_KOSMOS = BoxText(
    label="<phrase> {}</phrase>",
    box="<patch_index_{:04d}><patch_index_{:04d}>",
    between_boxes="</delimiter_of_multi_objects/>",
    group="{label}<object>{boxes}</object>",
    find=finder(tagged_label("<phrase> {}</phrase>"), location_tokens("patch_index_")),
    other=None,
)
_FLORENCE = BoxText(
    label="{}",
    box="<loc_{}><loc_{}><loc_{}><loc_{}>",
    between_boxes="",
    find=finder(r"(?P<scope>)(?P<label>[^<>\s][^<>]*)", location_tokens("loc_"), OTHER_TAG),
    other=None,
)
_PALIGEMMA = BoxText(
    label=" {}",
    box="<loc{:04d}><loc{:04d}><loc{:04d}><loc{:04d}>",
    group="{boxes}{label}",
    between_groups=" ; ",
    shared_label=False,
    reserved="<>;",
    find=finder(r"(?P<label>[^<>;\s][^<>;]*)", f"(?P<scope>){location_tokens('loc')}", OTHER_TAG),
    other=None,
)

_REGION = "Please provide the bounding box coordinate of the region this sentence describes: {expr}"
AXIS_SENTENCE = (
    " Each image is accompanied by axes. If the question pertains to the bounding box coordinates, refer to the axes "
    "for the response."
)
"""What VPP-LLaVA appends to a question in training and in evaluation, with the blank before it (arXiv 2503.15426)."""
_QUESTIONS = {
    "llava": _REGION + ".",
    "vpp-llava": _REGION + "." + AXIS_SENTENCE,
    "shikra": "Where is {expr} in the image? answer in [x0,y0,x1,y1] format.",
    "ferret": "What is the location of {expr} in the image?",
    "kosmos-2": "<grounding><phrase> {expr}</phrase>",
    "minigpt-v2": "[refer] give me the location of {expr}",
    "qwen-vl": "<ref>{expr}</ref><box>",
    "qwen2-vl": "Locate {expr} in this image and output its bounding box.",
    "qwen2.5-vl": "Locate {expr} in this image and output the bbox coordinates in JSON format.",
    "qwen3-vl": 'Locate every object that matches the description "{expr}" in the image. '
    "Report bbox coordinates in JSON format.",
    "internvl": _REGION.format(expr="<ref>{expr}</ref>"),
    "florence-2": "<CAPTION_TO_PHRASE_GROUNDING>{expr}",
    "paligemma": "detect {expr}",
    "deepseek-vl2": "<|ref|>{expr}<|/ref|>.",
    "cogvlm": "Where is {expr}? answer in [[x0,y0,x1,y1]] format.",
    "molmo": "Point to {expr}.",
}

# fmt: off
_ROWS: tuple[tuple[str, Frame, str, Scale, BoxText | None], ...] = (
    # family         frame     unit        numbers                       text
    ("llava",        "square", "0-1",      Rounded(1, decimals=2),       _LIST),
    ("vpp-llava",    "square", "0-1",      Rounded(1, decimals=2),       _LIST),
    ("shikra",       "square", "0-1",      Rounded(1, decimals=3),       _SHIKRA),
    ("ferret",       "image",  "0-1000",   Rounded(1000),                _LIST),
    ("kosmos-2",     "image",  "32 cells", Cells(32),                    _KOSMOS),
    ("minigpt-v2",   "image",  "0-100",    Rounded(100),                 _MINIGPT),
    ("qwen-vl",      "image",  "0-999",    Rounded(999),                 _QWEN),
    ("qwen2-vl",     "image",  "0-1000",   Rounded(1000),                _QWEN2),
    ("qwen2.5-vl",   "image",  "pixels",   Rounded(None),                _JSON),
    ("qwen3-vl",     "image",  "0-1000",   Rounded(1000),                _JSON),
    ("internvl",     "image",  "0-1000",   Rounded(1000),                _INTERNVL),
    ("florence-2",   "image",  "0-999",    Binned(1000),                 _FLORENCE),
    ("paligemma",    "image",  "0-1023",   Rounded(1023, y_first=True),  _PALIGEMMA),
    ("deepseek-vl2", "image",  "0-999",    Rounded(999),                 _DEEPSEEK),
    ("cogvlm",       "image",  "0-999",    Rounded(999),                 _COGVLM),
    ("molmo",        "image",  "0-100",    Rounded(100, decimals=1),     None),
)
# fmt: on

# Families that write as another does.
_ALIASES = {"llava-next": "llava", "qwen3.5": "qwen3-vl"}

_CODECS = {row[0]: BoxCodec(*row, question=_QUESTIONS[row[0]]) for row in _ROWS}
BOX_CODECS: Mapping[str, BoxCodec] = _CODECS | {
    name: replace(_CODECS[original], family=name) for name, original in _ALIASES.items()
}


def codec(family: str) -> BoxCodec:
    """Return the codec of a family by its name in `BOX_CODECS`, or raise VPPError naming the nearest and all."""
    return BOX_CODECS[known_name(family, sorted(BOX_CODECS), "box codec")]
