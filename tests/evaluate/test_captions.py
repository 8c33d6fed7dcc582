from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluate.conftest import Stub, make_rows
from vpp_plugins import VPPError
from vpp_plugins.evaluate import captions
from vpp_plugins.evaluate.captions import cider, meteor, regions, summarise_captions, words
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.run import evaluate

REFERENCES = {"a": ["the red cup on the table", "a red cup"], "b": ["two dogs in the snow"], "c": ["a tall green tree"]}


def test_own_words_score_best() -> None:
    right = {"a": "a red cup", "b": "two dogs in the snow", "c": "a tall green tree"}
    swapped = {"a": "two dogs in the snow", "b": "a tall green tree", "c": "a red cup"}

    assert cider(right, REFERENCES) > 5 > cider(swapped, REFERENCES)
    assert cider(dict.fromkeys("abc", ""), REFERENCES) == 0


def test_case_and_punctuation_do_not_count() -> None:
    assert words("A red  cup, on the dog's table!") == "a red cup on the dog's table"


def test_rows_of_one_box_are_one_region() -> None:
    rows = make_rows(4)
    same = replace(rows[0], id="picture0/9", expression="another word for it")

    found = regions([*rows, same])

    assert [region.expression for region in found] == ["thing 0\nanother word for it", "thing 1", "thing 2", "thing 3"]


def test_an_evaluation_of_captions(tmp_path: Path) -> None:
    rows = regions(make_rows(6))
    stub = Stub(lambda question, picture: f"thing {picture.getpixel((0, 0))[0]}")
    figures = summarise_captions(evaluate(stub, rows, protocol("region-caption"), tmp_path / "out"))

    assert figures["regions"] == 6
    assert figures["unreadable"] == 0
    assert figures["cider"] > 0


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VPPError, match="one caption per region is expected, but 1 came for 3"):
        cider({"a": "cup"}, REFERENCES)
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    with pytest.raises(VPPError, match="METEOR runs in Java"):
        meteor({"a": "cup"}, {"a": ["cup"]})


def test_pictures_are_what_the_stub_sees() -> None:
    assert make_rows(3)[2].picture().getpixel((0, 0)) == Image.new("RGB", (1, 1), (2, 0, 0)).getpixel((0, 0))
