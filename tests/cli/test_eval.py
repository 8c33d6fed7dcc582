"""`vpp eval` with a benchmark's name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run, is_one_sentence
from tests.data.formats.test_benchmarks import grefcoco_folder
from vpp_plugins.evaluate import BENCHMARKS, benchmarks
from vpp_plugins.evaluate.benchmarks import Benchmark


def test_benchmarks_are_listed_with_size_terms_source_and_layout(vpp: Run) -> None:
    code, out, err = vpp("eval", "benchmarks")
    assert (code, err) == (0, "")
    for name, one in BENCHMARKS.items():
        assert f"{name}: {one.asks}" in out
        assert one.source in out
    assert out.count("not verified: no published number is claimed") == 1
    assert "val 14,229, testA 19,200, testB 16,063; protocol grefcoco" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "grefcoco", "--split", "val"), "lacks grefs(unc).json and instances.json"),
        (("--data", "grefcoco", "--split", "train"), "has no split 'train'"),
        (("--data", "photos"), "no benchmark is called 'photos'"),
    ],
)
def test_a_folder_that_is_none_is_told_before_a_model_is_loaded(
    vpp: Run, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = vpp("eval", *words, "--folder", str(tmp_path), "--model", "/nowhere")
    assert code == 1
    assert said in err
    assert is_one_sentence(err)


def test_a_benchmark_is_asked_under_its_own_protocol(
    vpp: Run, pocket: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = grefcoco_folder(tmp_path / "grefcoco")
    (folder / "train2014").mkdir()
    Image.new("RGB", (640, 480), "grey").save(folder / "train2014" / "a.jpg")
    monkeypatch.setattr(Benchmark, "splits", lambda one, name: {"testA": 4})
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"grefcoco": replace(BENCHMARKS["grefcoco"], sha256={})})
    out = tmp_path / "out"
    code, shown, err = vpp("eval", "--data", "grefcoco", "--folder", str(folder), "--split", "testA", "--out", str(out))
    assert (code, err) == (0, "")
    results = json.loads((out / "results.json").read_text())
    assert (results["protocol"], results["split"], results["rows"]) == ("grefcoco", "grefcoco/testA", 3)
    assert "N-acc" in shown
    (time,) = [line for line in shown.splitlines() if line.startswith("Time: ")]
    assert all(f"{part} " in time for part in ("data", "vision encoder", "prompts", "language model", "writing"))
    page = (out / "report.html").read_text()
    assert time in page
    again = vpp("eval", "--data", "grefcoco", "--folder", str(folder), "--split", "testA", "--out", str(out))[1]
    assert time in again.splitlines()
    assert (out / "report.html").read_text() == page
