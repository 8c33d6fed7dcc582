import pytest

from vpp_plugins.data.doctor.collect import Fault, Repeats
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
