import tracemalloc

import numpy as np
import pytest

from vpp_plugins.data.doctor import collect
from vpp_plugins.data.doctor.collect import BoxColumns, Fault, Repeats
from vpp_plugins.data.doctor.frame_evidence import declared_candidate
from vpp_plugins.data.doctor.statistics import Sayings, statistics_of
from vpp_plugins.data.record import PIXELS, PIXELS_XYWH, Record
from vpp_plugins.data.sample import Describe, Locate, Talk, Turn

HERE, NEAR, FAR = (0.0, 0.0, 100.0, 100.0), (5.0, 5.0, 100.0, 100.0), (60.0, 60.0, 160.0, 160.0)


def found(*dialogues: tuple[str, tuple[Turn, ...]], unit=PIXELS) -> list[tuple[Fault, tuple[str, ...]]]:
    repeats = Repeats()
    for row, (image, turns) in enumerate(dialogues):
        repeats.add(row, Record(str(row), image, (200, 200), turns, unit))
    return [
        (finding.fault, finding.examples) for finding in repeats.findings([str(row) for row in range(len(dialogues))])
    ]


@pytest.mark.parametrize(
    "turn", [Locate("cup", (HERE,)), Locate("cups", (HERE, FAR)), Describe((HERE,), "x"), Talk("q", "a")]
)
def test_the_same_again_is_a_duplicate(turn: Turn) -> None:
    assert found(("a", (turn,)), ("a", (turn,))) == [(Fault.DUPLICATE, ("1",))]
    assert found(("a", (turn,)), ("b", (turn,))) == []


def test_a_dialogue_with_anything_new_is_none() -> None:
    assert found(("a", (Talk("q", "a"),)), ("a", (Talk("q", "a"), Talk("q", "b")))) == []


def test_another_box_for_the_same_words_conflicts() -> None:
    assert found(("a", (Locate("Cup", (HERE,)),)), ("a", (Locate("cup ", (FAR,)),))) == [(Fault.CONFLICT, ("1",))]
    assert found(("a", (Locate("cup", (HERE,)),)), ("a", (Locate("cup", (NEAR,)),))) == []
    assert found(("a", (Locate("cup", (HERE,)),)), ("b", (Locate("cup", (FAR,)),))) == []


def test_overlap_is_measured_in_the_order_of_the_file() -> None:
    """As corners the two would hardly meet; as lengths they nearly agree."""
    first, second = Locate("cup", ((60.0, 60.0, 100.0, 100.0),)), Locate("cup", ((55.0, 55.0, 105.0, 105.0),))
    assert found(("a", (first,)), ("a", (second,)), unit=PIXELS_XYWH) == []
    third = Locate("cup", ((60.0, 60.0, 20.0, 20.0),))
    assert found(("a", (first,)), ("a", (third,)), unit=PIXELS_XYWH) == [(Fault.CONFLICT, ("1",))]


def test_broken_boxes_are_no_conflict() -> None:
    assert found(("a", (Locate("cup", (HERE,)),)), ("a", (Locate("cup", ((1.0, 2.0, 3.0),)),))) == []


def columns_of(count: int) -> BoxColumns:
    """Boxes in pixels of an image of 200 x 200: some inverted, beyond it, flat, in fractions, or of unknown size."""
    declared, rng = declared_candidate(PIXELS), np.random.default_rng(0)
    assert declared is not None
    columns = BoxColumns(declared, PIXELS)
    for row, numbers in enumerate(rng.integers(0, 210, (count, 4)).tolist()):
        columns.add(row, (0.1, 0.2, 0.3, 0.4) if row % 9 == 0 else tuple(numbers), None if row % 7 == 0 else (200, 200))
    return columns


def test_boxes_are_counted_alike_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, ids = columns_of(100), [str(row) for row in range(100)]
    whole = columns.findings(None, ids)
    assert len(whole) == 4
    monkeypatch.setattr(collect, "_BLOCK", 7)
    assert columns.findings(None, ids) == whole


def test_what_is_reckoned_with_many_boxes_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of VPP-SFT's 1.2 million boxes took 160 MB more than the boxes."""
    monkeypatch.setattr(collect, "_BLOCK", 1000)
    columns = columns_of(20_000)
    tracemalloc.start()
    columns.findings(None, [""] * 20_000)
    statistics_of(((*block, columns.declared) for block in columns.blocks()), Sayings())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < columns.numbers.nbytes
