import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluate.conftest import Stub, make_rows
from tests.families import attached_family
from vpp_plugins import Grounder, VPPError
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
    same = replace(rows[0], id="image0/9", expression="another word for it")

    found = regions([*rows, same])

    assert [region.expression for region in found] == ["thing 0\nanother word for it", "thing 1", "thing 2", "thing 3"]


def test_an_evaluation_of_captions(tmp_path: Path) -> None:
    rows = regions(make_rows(6))
    stub = Stub(lambda question, image: f"thing {image.getpixel((0, 0))[0]}")
    figures = summarise_captions(evaluate(stub, rows, protocol("region-caption"), tmp_path / "out"))

    assert figures["regions"] == 6
    assert figures["unreadable"] == 0
    assert figures["cider"] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR runs in Java")
def test_meteor_itself() -> None:
    right = {"a": "a red cup", "b": "two dogs in the snow", "c": "a tall green tree"}

    assert meteor(right, REFERENCES) == pytest.approx(1)
    assert 0 < meteor({"a": "", "b": "dogs", "c": "!!!"}, REFERENCES) < 0.1
    assert meteor(dict.fromkeys("abc", ""), REFERENCES) == 0


def test_a_java_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(VPPError, match="METEOR's Java program ended without a score"):
        meteor({"a": "cup"}, {"a": ["cup"]})


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VPPError, match="one caption per region is expected, but 1 came for 3"):
        cider({"a": "cup"}, REFERENCES)
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    with pytest.raises(VPPError, match="METEOR runs in Java"):
        meteor({"a": "cup"}, {"a": ["cup"]})


def test_images_are_what_the_stub_sees() -> None:
    assert make_rows(3)[2].load_image().getpixel((0, 0)) == Image.new("RGB", (1, 1), (2, 0, 0)).getpixel((0, 0))


@pytest.mark.usefixtures("toy")
def test_a_family_that_counts_resized_pixels_is_given_its_boxes_in_them(tmp_path: Path) -> None:
    model, processor = attached_family("qwen2_5_vl")
    grounder = Grounder(model, processor)
    (row,) = rows = regions([replace(make_rows(1)[0], boxes=((0.0, 0.0, 40.0, 20.0),))])
    (meta,) = grounder.metas([row.load_image()])
    answers = evaluate(grounder, rows, protocol("region-caption"), tmp_path)

    assert meta.processed_size_hw not in (None, row.size_hw)
    height, width = meta.processed_size_hw
    assert f"[0, 0, {width}, {height}]" in protocol("region-caption").ask(row, grounder.codec, meta)
    assert answers[0].processed_size_hw == meta.processed_size_hw
