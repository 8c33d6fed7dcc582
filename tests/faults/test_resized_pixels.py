"""Boxes in pixels of the resized image, as Qwen2.5-VL's own training files hold them: read, written and judged."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.commands import vpp
from vpp_plugins.boxes import BOX_CODECS, ImageMeta, codec
from vpp_plugins.data import PixelBudget
from vpp_plugins.data.formats import Reading, read_samples
from vpp_plugins.errors import VPPError


def dialogue(image: str, question: str, answer: str) -> str:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return json.dumps([{"id": "0", "image": image, "conversations": turns}])


def test_a_budget_gives_the_sizes_of_the_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = random.Random(0)
    for _ in range(3000):
        height = rng.randint(1, 5000)
        width = rng.randint(max(1, height // 150), min(5000, height * 150))
        least = rng.randint(1, 10**6)
        most = rng.randint(max(least, 28 * 28), 13 * 10**6)
        assert PixelBudget(least, most)((height, width)) == smart_resize(height, width, 28, least, most)


@pytest.mark.parametrize("pixels", [None, PixelBudget(most=256 * 784), PixelBudget(least=2_000_000)], ids=str)
def test_boxes_go_out_and_come_back(tmp_path: Path, pixels: PixelBudget | None) -> None:
    """Through the commands: neutral lines to Qwen's text with a budget, and back with the same."""
    rng, rows = random.Random(1), []
    for number in range(40):
        width, height = rng.randint(60, 3000), rng.randint(60, 3000)
        x, y = rng.uniform(0, width - 50), rng.uniform(0, height - 50)
        turns = [{"locate": "a cup", "boxes": [[x, y, x + 45, y + 45]]}]
        rows.append({"id": str(number), "image": f"{number}.png", "width": width, "height": height, "turns": turns})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = [{name: row[name] for name in ("image", "width", "height")} for row in rows]
    (tmp_path / "sizes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sizes))
    budget = ["--min-pixels", str(pixels.least), "--max-pixels", str(pixels.most)] if pixels else []
    family = ["--family", "qwen2.5-vl", "--sizes", tmp_path / "sizes.jsonl", *budget]
    there = vpp(
        "data", "convert", tmp_path / "in.jsonl", tmp_path / "q.json", "--from", "neutral", "--to", "vpp-sft", *family
    )
    assert there.code == 0, there.complained
    back = vpp(
        "data", "convert", tmp_path / "q.json", tmp_path / "out.jsonl", "--from", "vpp-sft", "--to", "neutral", *family
    )
    assert back.code == 0, back.complained
    texts = json.loads((tmp_path / "q.json").read_text())
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, text, again in zip(rows, texts, found, strict=True):
        size_hw = (row["height"], row["width"])
        processed = (pixels or PixelBudget())(size_hw)
        box = tuple(row["turns"][0]["boxes"][0])
        assert text["conversations"][1]["value"] == codec("qwen2.5-vl").encode(
            [box], ImageMeta(size_hw, processed), ["a cup"]
        )
        step = max(size_hw[0] / processed[0], size_hw[1] / processed[1])
        assert again["turns"][0]["boxes"][0] == pytest.approx(box, abs=step)


def test_the_doctor_judges_what_the_budget_says(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    (tmp_path / "train.json").write_text(
        dialogue("a.png", "Where?", '[{"bbox_2d": [100, 100, 400, 300], "label": "a"}]')
    )
    for budget, shown in ([], 16384), (["--max-pixels", str(256 * 784)], 256):
        done = vpp(
            "doctor",
            tmp_path / "train.json",
            "--format",
            "vpp-sft",
            "--images",
            tmp_path,
            "--family",
            "qwen2.5-vl",
            *budget,
        )
        assert done.code in (0, 1)
        assert "Traceback" not in done.complained
        assert f"to {shown * 784:,} pixels" in done.printed or "Nothing was found" in done.printed


@pytest.mark.parametrize("family", sorted(BOX_CODECS))
def test_no_family_leads_a_user_of_the_shell_to_python(tmp_path: Path, family: str) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    (tmp_path / "train.json").write_text(dialogue("a.png", "Where?", "[1, 2, 3, 4]"))
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"image": "a.png", "turns": [{"locate": "a", "boxes": [[1, 2, 30, 40]]}]})
    )
    for source, before, after in ("train.json", "vpp-sft", "neutral"), ("in.jsonl", "neutral", "vpp-sft"):
        done = vpp(
            "data",
            "convert",
            tmp_path / source,
            tmp_path / f"out-{after}",
            "--from",
            before,
            "--to",
            after,
            "--family",
            family,
            "--images",
            tmp_path,
        )
        assert "ImageMeta(" not in done.complained
        assert "Traceback" not in done.complained


def test_a_family_of_a_plugin_is_told_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import replace

    other = replace(codec("qwen2.5-vl"), family="other")
    monkeypatch.setattr("vpp_plugins.data.formats.conversations._codec", lambda family: other)
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    (tmp_path / "train.json").write_text(dialogue("a.png", "Where?", '[{"bbox_2d": [1, 2, 30, 40]}]'))
    with pytest.raises(VPPError, match="--min-pixels and --max-pixels"):
        list(read_samples(tmp_path / "train.json", "vpp-sft", images=tmp_path))
    reading = Reading(pixels=PixelBudget())
    assert len(list(read_samples(tmp_path / "train.json", "vpp-sft", images=tmp_path, reading=reading))) == 1


def test_a_budget_that_no_image_fits_is_refused(tmp_path: Path) -> None:
    done = vpp(
        "data",
        "convert",
        tmp_path / "a",
        tmp_path / "b",
        "--from",
        "vpp-sft",
        "--to",
        "neutral",
        "--min-pixels",
        "9",
        "--max-pixels",
        "4",
    )
    assert done.code == 1
    assert "no image has so many" in done.complained
