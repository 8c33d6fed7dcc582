"""A perfect predictor under the family's own protocol gets what rounding leaves, computed here without the codecs."""

import math
import random
from collections.abc import Callable
from statistics import fmean

import pytest

from tests.evaluate.conftest import make_rows
from vpp_plugins.boxes import BOX_CODECS, Box, ImageMeta, box_iou, codec
from vpp_plugins.evaluate.answers import Answer
from vpp_plugins.evaluate.protocol import protocol, protocols
from vpp_plugins.evaluate.results import judge, summarise

Grid = Callable[[float, int], float]
"""A coordinate, 0 to 1 of its frame's side of so many pixels, as it comes back from the text; the same unit."""


def rounded(full: int) -> Grid:
    return lambda value, side: round(value * full) / full


def in_pixels(value: float, side: int) -> float:
    return round(value * side) / side


def middle_of_bin(value: float, side: int) -> float:
    return (min(math.floor(value * 1000), 999) + 0.5) / 1000


GRIDS: dict[str, tuple[str, Grid]] = {
    "llava": ("padded", rounded(100)),
    "llava-next": ("padded", rounded(100)),
    "vpp-llava": ("padded", rounded(100)),
    "shikra": ("padded", rounded(1000)),
    "ferret": ("whole", rounded(1000)),
    "minigpt-v2": ("whole", rounded(100)),
    "qwen-vl": ("whole", rounded(999)),
    "qwen2-vl": ("whole", rounded(1000)),
    "qwen2.5-vl": ("resized", in_pixels),
    "qwen3-vl": ("whole", rounded(1000)),
    "qwen3.5": ("whole", rounded(1000)),
    "internvl": ("whole", rounded(1000)),
    "florence-2": ("whole", middle_of_bin),
    "paligemma": ("whole", rounded(1023)),
    "deepseek-vl2": ("whole", rounded(999)),
    "cogvlm": ("whole", rounded(999)),
}


def truths(count: int = 300) -> list[tuple[Box, ImageMeta]]:
    rng, found = random.Random(0), []
    for _ in range(count):
        width, height = rng.choice([(640, 480), (480, 640), (500, 375), (427, 640), (1024, 683)])
        x, y = sorted(rng.uniform(0, width) for _ in "xx"), sorted(rng.uniform(0, height) for _ in "yy")
        resized = (28 * round(height / 28), 28 * round(width / 28))
        found.append(((x[0], y[0], x[1], y[1]), ImageMeta((height, width), resized)))
    return found


def through_the_grid(box: Box, meta: ImageMeta, frame: str, grid: Grid) -> Box:
    height, width = meta.size_hw
    side = max(height, width)
    sides = (side, side) if frame == "padded" else (width, height)
    offsets = ((side - width) // 2, (side - height) // 2) if frame == "padded" else (0, 0)
    counted = meta.processed_size_hw[::-1] if frame == "resized" and meta.processed_size_hw else sides
    edges = [
        grid((value + offsets[place % 2]) / sides[place % 2], counted[place % 2]) * sides[place % 2]
        - offsets[place % 2]
        for place, value in enumerate(box)
    ]
    x1, y1, x2, y2 = (min(max(edge, 0.0), float((width, height)[place % 2])) for place, edge in enumerate(edges))
    return x1, y1, x2, y2


def wider(box: Box) -> Box:
    return box[0], box[1], box[2] + 1, box[3] + 1


@pytest.mark.parametrize("family", sorted(GRIDS))
def test_a_perfect_predictor_reaches_the_computed_ceiling(family: str) -> None:
    rules = next((one for one in protocols().values() if one.family == family), protocol("default"))
    frame, grid = GRIDS[family]
    row, own, said = make_rows(1)[0], codec(family), truths()
    answers = [
        Answer(id=f"{number}/0", image="", size_hw=meta.size_hw, processed_size_hw=meta.processed_size_hw,
               expression=row.expression, boxes=(box,), category="", kind="", text=own.encode([box], meta))
        for number, (box, meta) in enumerate(said)
    ]  # fmt: skip
    judged = judge(answers, rules, own)
    figures = summarise(judged, rules)

    written = [through_the_grid(box, meta, frame, grid) for box, meta in said]
    ceiling = [box_iou(box, back) for (box, _), back in zip(said, written, strict=True)]
    if family == "shikra":  # measured against the truth as it would be written
        ceiling = [float(back[0] < back[2] and back[1] < back[3]) for back in written]
    if family == "minigpt-v2":  # boxes count a pixel wider and higher
        ceiling = [box_iou(wider(box), wider(back)) for (box, _), back in zip(said, written, strict=True)]
    near = 2e-3 if family == "vpp-llava" else 1e-4  # cuts at 0 alone; published scripts count in single precision
    assert [one.iou for one in judged] == pytest.approx(ceiling, abs=near)
    for threshold, name in ((0.5, "acc_50"), (0.75, "acc_75"), (0.9, "acc_90")):
        right = fmean(rules.is_correct(iou, threshold) for iou in ceiling)
        assert figures[name]["mean"] == pytest.approx(right, abs=1 / len(said) if family == "vpp-llava" else 0)
    assert figures["mean_iou"]["mean"] == pytest.approx(fmean(ceiling), abs=1e-4)


def test_kosmos_2_reaches_the_ceiling_of_its_cells() -> None:
    own, rules = codec("kosmos-2"), protocol("default")
    for box, meta in truths():
        height, width = meta.size_hw
        unit_x, unit_y = width / 32, height / 32
        left, top = math.floor(box[0] / unit_x), math.floor(box[1] / unit_y)
        right, bottom = math.ceil(box[2] / unit_x) - 1, math.ceil(box[3] / unit_y) - 1
        shift = 0.5 if left < right and top < bottom else 0.0
        back = (
            (left + shift) * unit_x,
            (top + shift) * unit_y,
            (right + 1 - shift) * unit_x,
            (bottom + 1 - shift) * unit_y,
        )
        reading = rules.read(own.encode([box], meta), meta, own)
        assert reading.box == pytest.approx(back)


def test_every_family_that_writes_boxes_is_here() -> None:
    assert {*GRIDS, "kosmos-2"} == {name for name, one in BOX_CODECS.items() if one.text is not None}
