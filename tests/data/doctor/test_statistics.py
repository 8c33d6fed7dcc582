import numpy as np
import pytest

from vpp_plugins.data.doctor.frame_evidence import Candidate
from vpp_plugins.data.doctor.statistics import Sayings, noun_of, statistics_of
from vpp_plugins.data.record import BoxUnit, Record
from vpp_plugins.data.sample import Describe, Locate, Talk


@pytest.mark.parametrize(
    ("expression", "noun"),
    [
        ("the white cup", "cup"),
        ("cup on the left", "cup"),
        ("White Cup left", "cup"),
        ("a man in a red hat, sitting", "man"),
        ("girl who smiles", "girl"),
        ("cup 17", "cup"),
        ("", ""),
    ],
)
def test_nouns(expression: str, noun: str) -> None:
    assert noun_of(expression) == noun


def test_words_and_images_per_noun_are_counted() -> None:
    sayings, box = Sayings(), ((0.0, 0.0, 1.0, 1.0),)
    for image in ("a", "b", "b"):
        sayings.add(Record("1", image, None, (Locate("the red cup", box), Talk("hello", "hi"))))
    sayings.add(Record("2", "a", None, (Describe(box, "a hat"), Locate("it", box)), category="cup"))
    assert dict(sayings.words) == {3: 3, 2: 1, 1: 1}
    assert sayings.nouns() == (("cup", 2),)


def test_sizes_and_places_are_shares_of_the_image() -> None:
    numbers = np.array([[0, 0, 320, 240], [320, 240, 640, 480], [5, 5, 5, 5], [9.0, 9, 90, 90]])
    sizes_wh = np.array([[640.0, 480]] * 3 + [[np.nan, np.nan]])
    found = statistics_of([(numbers, sizes_wh, Candidate(BoxUnit()))], Sayings())
    assert found.sizes.tolist() == [0] * 10 + [2] + [0] * 9
    assert found.places.sum() == 2
    assert found.places[6, 6] == found.places[18, 18] == 1
