"""Boxes: one codec per model family, between pixels of the original image and the text a model writes.

A box here is always xyxy in pixels of the original image. Everything that a family does differently (the frame it
measures in, the unit, the rounding, the order, the brackets) is a row of the table in `families.py`.
"""

from vpp_plugins.boxes.answer import answer_of, opens_thought
from vpp_plugins.boxes.codecs import BoxCodec, Decoded
from vpp_plugins.boxes.families import AXIS_SENTENCE, BOX_CODECS, codec
from vpp_plugins.boxes.frames import (
    Box,
    BoxFault,
    BoxLike,
    BoxStatus,
    Frame,
    ImageMeta,
    box_fault,
    box_iou,
    frame_rectangle,
    generalized_box_iou,
    inside_image,
    padded_square,
    shown_box,
    worst_status,
)
from vpp_plugins.boxes.metas import ShownSizes, check_shown, metas_of
from vpp_plugins.boxes.scales import Binned, Rounded, Scale
from vpp_plugins.boxes.sets import count_pairs, count_repeats, least_overlap
from vpp_plugins.boxes.text import NOTHING, BoxText

__all__ = [
    "AXIS_SENTENCE",
    "BOX_CODECS",
    "NOTHING",
    "Binned",
    "Box",
    "BoxCodec",
    "BoxFault",
    "BoxLike",
    "BoxStatus",
    "BoxText",
    "Decoded",
    "Frame",
    "ImageMeta",
    "Rounded",
    "Scale",
    "ShownSizes",
    "answer_of",
    "box_fault",
    "box_iou",
    "check_shown",
    "codec",
    "count_pairs",
    "count_repeats",
    "frame_rectangle",
    "generalized_box_iou",
    "inside_image",
    "least_overlap",
    "metas_of",
    "opens_thought",
    "padded_square",
    "shown_box",
    "worst_status",
]
