import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import (
    attach_cost,
    attention,
    cold_start,
    curves,
    encodings,
    evaluation,
    gpu,
    host_time,
    local_prompt,
    plain_answers,
    preprocessing,
    runtimes,
    training,
    unseen_nouns,
)
from benchmarks.rows import Row, interleaved, median_row, ratios, show_rows, write_rows
from vpp_plugins import Grounder
from vpp_plugins.pocket import build_pocket
from vpp_plugins.prompts.generators import MultiheadAttention, build_detr
from vpp_plugins.testing import TINY_DETR

TINY_HOST = {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4}


@pytest.mark.parametrize(
    ("interval", "better", "status"),
    [
        ((0.8, 0.9), "less", "pass"),
        ((0.8, 1.0), "less", "pass"),
        ((0.9, 1.1), "less", "inconclusive"),
        ((1.1, 1.2), "less", "fail"),
        ((1.1, 1.2), "more", "pass"),
        ((1.0, 1.2), "more", "pass"),
        ((0.9, 1.1), "more", "inconclusive"),
        ((0.8, 0.9), "more", "fail"),
    ],
)
def test_a_row_passes_where_its_whole_interval_does(interval: tuple[float, float], better: str, status: str) -> None:
    row = Row(name="", value=sum(interval) / 2, interval=interval, bar=1.0, better=better)  # type: ignore[arg-type]

    assert row.status == status


def test_a_counted_row_has_no_interval_and_a_row_without_bar_no_verdict() -> None:
    assert Row(name="", value=1.0, bar=1.0).status == "pass"
    assert Row(name="", value=1.1, bar=1.0).status == "fail"
    assert Row(name="", value=1.0).status == "no bar"
    assert Row(name="", value=None, bar=1.0).status == "not run"


def test_the_interval_holds_the_median_and_shrinks_with_more_samples() -> None:
    few, many = ([float(sample % 11) for sample in range(count)] for count in (11, 1100))

    narrow, wide = median_row("", many), median_row("", few)

    for row in (narrow, wide):
        assert row.value == 5
        assert row.interval is not None
        assert row.interval[0] <= 5 <= row.interval[1]
    assert narrow.interval[1] - narrow.interval[0] < wide.interval[1] - wide.interval[0]  # type: ignore[index]


def test_every_round_runs_every_variant_once_in_changing_order() -> None:
    ran: list[str] = []
    ticks = iter(range(1000))

    times = interleaved(
        {name: lambda name=name: ran.append(name) for name in "abc"},  # type: ignore[misc]
        rounds=20,
        warm_up=3,
        clock=lambda: float(next(ticks)),
    )

    rounds = [ran[start : start + 3] for start in range(0, len(ran), 3)]
    assert len(rounds) == 23
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert times == {name: [1.0] * 20 for name in "abc"}


def test_ratios_are_those_within_a_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_the_command_writes_a_list_of_rows_and_says_how_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BENCHMARKS", {"some": "tests.test_benchmarks:some_rows"})
    out = tmp_path / "bench" / "results.json"

    page = tmp_path / "page.md"

    assert bench.main(["--out", str(out), "--page", str(page)]) == 1

    written = json.loads(out.read_text())
    assert [{key: row[key] for key in ("name", "value", "bar", "status")} for row in written] == [
        {"name": "good", "value": 1.0, "bar": 2.0, "status": "pass"},
        {"name": "bad", "value": 3.0, "bar": 2.0, "status": "fail"},
        {"name": "elsewhere", "value": None, "bar": 1.1, "status": "not run"},
    ]
    said = capsys.readouterr().out
    assert all(word in said for word in ("good", "pass", "fail", "not run", "torch ", "python -m benchmarks.gpu"))
    assert [file.name for file in out.parent.iterdir()] == ["results.json"]
    assert "| good | 1 ms |  | at most 2 ms | pass |" in page.read_text()
    assert "- elsewhere: python -m benchmarks.gpu" in page.read_text()


def some_rows() -> list[Row]:
    return [
        Row(name="good", value=1.0, bar=2.0, unit="ms"),
        Row(name="bad", value=3.0, bar=2.0),
        Row(name="elsewhere", value=None, bar=1.1, note="python -m benchmarks.gpu"),
    ]


def test_an_unknown_benchmark_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["fast"])
    assert "unknown: fast; known are attach-cost" in capsys.readouterr().err


def test_every_benchmark_is_there() -> None:
    from pkgutil import resolve_name

    for place in bench.BENCHMARKS.values():
        assert callable(resolve_name(place))


def test_attaching_is_measured_against_the_same_work() -> None:
    rows = attach_cost.measure(rounds=3)

    assert [row.bar for row in rows] == [0.3, 1.0, 1.0]
    assert all(row.value is not None and row.value < 50 for row in rows)


def test_ratios_of_a_forward_are_near_one_and_no_memory_is_left() -> None:
    rows = {row.name: row for row in host_time.measure(rounds=3, shortest=0.004, sizes=TINY_HOST)}

    assert rows["memory left after a forward"].value == 0
    assert rows["memory left after a forward"].status == "pass"
    timed = [row for row in rows.values() if row.unit == "x"]
    assert [row.bar for row in timed] == [1.03, 1.01, 1.01]
    assert all(row.value is not None and 0.2 < row.value < 5 for row in timed)


def test_what_a_run_allocates_is_counted_to_the_byte() -> None:
    ones = torch.ones(1000, 1000)
    kept = []

    def keep() -> None:
        kept[:] = [torch.empty(0), (ones + 1) * 2]  # two of 4 MB at the peak, and one stays

    peak, left = host_time.allocated(keep)

    assert peak >= 8_000_000
    assert peak < 12_100_000
    assert left in (0, 4_000_000)  # the first run's result may go as the second's comes


def test_every_attention_of_a_cpu_is_timed() -> None:
    rows = attention.measure(rounds=1, times_round=1)

    assert len({row.name for row in rows}) == len(rows) == 9
    assert all(row.value is not None and row.value > 0 for row in rows)


def test_the_page_shows_the_curves_that_were_measured(tmp_path: Path) -> None:
    points = json.loads(curves.NUMBERS.read_text())["points"]
    page = Path("docs/performance.md").read_text()

    assert "\n".join(curves.table(points)) in page
    assert {point["curve"] for point in points} == set(curves.CURVES)


def test_the_curves_image_is_of_their_numbers(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    committed = curves.IMAGE.read_text()
    if f"Matplotlib v{matplotlib.__version__}" not in committed:
        pytest.skip("another matplotlib draws other lines")

    curves.draw(json.loads(curves.NUMBERS.read_text())["points"], tmp_path / "again.svg")

    assert (tmp_path / "again.svg").read_text() == committed


def test_each_image_of_a_prompt_costs_a_forward_of_the_detector_and_its_tokens() -> None:
    points = json.loads(curves.NUMBERS.read_text())["points"]
    gflop = {(point["curve"], point["value"]): point["gflop"] for point in points}

    assert gflop["batch", 2] == pytest.approx(2 * gflop["batch", 1], rel=1e-4)
    weights = 8 * (4 * 1024**2 + 3 * 1024 * 2816)
    for images in (1, 2, 4):
        tokens = 2 * weights * curves.QUERIES * images / 1e9
        assert gflop["prompt", images] - gflop["batch", images] > tokens
        assert gflop["prompt", images] - gflop["batch", images] < 1.1 * tokens


@pytest.mark.slow
def test_other_runtimes_give_the_same_queries_and_are_timed() -> None:
    onnx, openvino = runtimes.rows_of("toy", build_detr(num_queries=4, **TINY_DETR).eval(), 64, rounds=1)

    assert onnx.value is not None
    assert onnx.value > 0
    assert openvino.value is not None or openvino.note == "pip install openvino"


def test_preprocessing_makes_the_reference_s_pixels() -> None:
    image = preprocessing.photograph((90, 50))

    for theirs, ours in zip(preprocessing.reference_pixels(image), preprocessing.our_pixels()(image), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_preprocessing_is_timed_for_images_of_every_shape() -> None:
    rows = preprocessing.measure(rounds=1)

    assert len({row.name for row in rows}) == len(rows) == 6
    assert all(row.value is not None and row.value > 0.1 for row in rows)


def test_the_pocket_model_is_timed_in_batches() -> None:
    loads = evaluation.loads()
    few = {name: loads[name][:2] for name in ("scenes", "single questions")}
    rows = evaluation.measure(rounds=1, batches=(1, 2), questions=few)

    assert [row.unit for row in rows] == ["/s", "/s", "x"] * 2
    assert [row.bar for row in rows] == [None, None, 2.0, None, None, None]
    assert "scenes (2.0 questions an image)" in rows[0].name
    assert all(row.value is not None and row.value > 0 for row in rows)


def test_a_training_step_is_measured_with_lora_and_without() -> None:
    """At toy size the prompts outweigh the host, so time and memory say nothing; AdamW's numbers are exact."""
    rows = training.measure(rounds=1, sizes=TINY_HOST)

    assert [row.unit for row in rows] == ["x", "x", "KiB", "bytes", "x", "KiB", "bytes"]
    assert all(row.value is not None and row.value > 0 for row in rows if row.unit == "x")
    assert [row.value for row in rows if row.unit == "bytes"] == [8, 8]


@pytest.mark.slow
def test_the_door_opens_in_time() -> None:
    rows = cold_start.measure(rounds=1)

    assert all(row.status == "pass" for row in rows if row.bar is not None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_its_rows_are_there_with_the_command() -> None:
    rows = gpu.measure()

    assert {row.status for row in rows} == {"not run"}
    assert all("python -m benchmarks.gpu" in row.note for row in rows)


@pytest.mark.slow
def test_the_gpu_s_rows_can_be_made_at_toy_size_on_the_cpu() -> None:
    """In a process of its own, because the checks of signatures that our tests turn on cannot be compiled."""
    finished = subprocess.run([sys.executable, "-c", TOY_SIZE], capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr[-3000:]


TOY_SIZE = """
import torch

from benchmarks import gpu

rows = gpu.run(gpu.TINY, torch.device("cpu"), torch.float32, rounds=1)
assert [(row.name, row.bar) for row in rows] == list(gpu.NAMES.items())
missing = {row.name: row.note for row in rows if row.value is None}
assert all("memory" in name or "xformers" in name or "bitsandbytes" in note for name, note in missing.items()), missing
"""


def test_a_table_is_printed_for_any_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    show_rows(some_rows(), "a title")
    write_rows([], tmp_path / "none.json")

    assert "a title" in capsys.readouterr().out
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_kept_encodings_save_most_of_a_step() -> None:
    (row,) = encodings.measure(rounds=2, images=1)

    assert row.value is not None
    assert row.value < 0.8


def test_the_plain_detr_of_the_benchmark_is_ours_with_torchs_attention() -> None:
    detr = build_detr(num_queries=3, **TINY_DETR).eval()
    plain, pixels = local_prompt.with_torchs_attention(detr), torch.randn(2, 3, 64, 64)

    assert not any(isinstance(module, MultiheadAttention) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels), detr(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("noun", "who"),
    [
        ("toilet", "COCO"),
        ("bear", "COCO"),
        ("camel", "ImageNet"),
        ("syringe", "ImageNet"),
        ("el", "neither"),
        ("walnut", "neither"),
    ],
)
def test_who_names_a_noun(noun: str, who: str) -> None:
    assert unseen_nouns.group(noun) == who


def test_prose_is_whole_sentences_without_code() -> None:
    prose = plain_answers.paragraphs()

    assert len(prose) >= 200
    assert all(one.endswith(".") and "\n" not in one and "::" not in one for one in prose)
    assert len(set(prose)) == len(prose)


def test_perplexity_is_of_the_models_own_probabilities() -> None:
    model, processor = build_pocket(image_size=64, hidden_size=32, layers=1, heads=2, intermediate_size=32)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # every token is as likely

    (nats,) = plain_answers.losses(model, processor.tokenizer(["the cup on the left."])["input_ids"])
    assert nats == pytest.approx(math.log(model.config.text_config.vocab_size))


def test_answers_are_read_to_their_first_line() -> None:
    model, processor = build_pocket(image_size=64, hidden_size=32, layers=1, heads=2, intermediate_size=32)
    told = processor.tokenizer("a cup\nand a jug", return_tensors="pt")["input_ids"].expand(10, -1)
    model.generate = lambda input_ids, **_: torch.cat([input_ids, told], dim=1)

    assert plain_answers.answers(Grounder(model, processor)) == ["a cup"] * 10
