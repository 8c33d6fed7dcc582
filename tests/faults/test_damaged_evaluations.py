"""Kind 5: answers that were lost, repeated, reordered or changed are never judged as if they were those given."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.conftest import Stub, make_rows, truthful
from tests.faults.damage import DAMAGES, damaged, files_of
from vpp_plugins import VPPError
from vpp_plugins.evaluate.answers import ANSWERS, Ledger
from vpp_plugins.evaluate.benchmark import measure, rescore
from vpp_plugins.evaluate.compare import compare
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.results import load_evaluation
from vpp_plugins.evaluate.run import evaluate

ROWS = make_rows(10)
READ = ("run.json", ANSWERS)
"""What is read again of a finished evaluation; results.json and the page are for people."""


def say(question: str, image: Any) -> str:
    return "nothing" if "thing 3." in question else truthful(ROWS)(question, image)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    measure(Stub(say), ROWS, protocol("default"), tmp_path / "whole", model="stub", data="rows", batch_size=2)
    return tmp_path / "whole"


def check_every_file(finished: Path, copy: Path, seeds: range) -> None:
    expected = [answer.answer for answer in load_evaluation(finished).judged]
    for path in files_of(finished):
        for damage in DAMAGES:
            for seed in seeds:
                damaged(finished, copy, path, damage, f"{path.name} {damage.__name__} {seed}")
                shutil.rmtree(copy.parent / "out", ignore_errors=True)
                try:
                    found = load_evaluation(copy)
                    rescore(copy, "default", copy.parent / "out")
                except VPPError:
                    assert damage.__name__ in ("swap", "duplicate") or path.name in READ
                    continue
                assert [answer.answer for answer in found.judged] == expected
                assert found.settings == load_evaluation(finished).settings


def test_damage_to_any_file_gives_the_same_answers_or_a_sentence(finished: Path, tmp_path: Path) -> None:
    check_every_file(finished, tmp_path / "copy", range(2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_much_damage_to_any_file_gives_the_same_answers_or_a_sentence(finished: Path, tmp_path: Path) -> None:
    check_every_file(finished, tmp_path / "copy", range(2, 30))


@pytest.mark.parametrize("of_0_1_0", [False, True])
def test_results_are_not_read_as_what_was_asked(finished: Path, of_0_1_0: bool) -> None:
    """results.json in run.json's place was taken for it: its protocol, rows and hashes are the same."""
    values = json.loads((finished / "results.json").read_text())
    if of_0_1_0:
        del values["holds"], values["values_sha256"]
    (finished / "run.json").write_text(json.dumps(values))
    with pytest.raises(VPPError, match=r"run\.json' is damaged \(it holds results"):
        load_evaluation(finished)


def test_an_evaluation_of_no_image_at_all_is_refused(tmp_path: Path) -> None:
    """It ended well, with an accuracy of 0: all images were of another size than their boxes are for."""
    wrong = [replace(row, size_hw=(row.size_hw[0] + 1, row.size_hw[1])) for row in ROWS]
    names: dict[str, Any] = {"model": "stub", "data": "rows", "batch_size": 2}
    with pytest.raises(VPPError, match=r"none of 10 images could be used, so .*the box would be of another"):
        measure(Stub(say), wrong, protocol("default"), tmp_path / "none", **names)
    assert not (tmp_path / "none/results.json").exists()
    found = measure(Stub(say), wrong[:-1] + ROWS[-1:], protocol("default"), tmp_path / "one", **names)
    assert found["figures"]["statuses"]["unreadable"] == 9


def test_a_file_in_a_folder_s_place(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(VPPError, match=r"no 'run\.json' in '.*rows\.jsonl': give the folder"):
        load_evaluation(tmp_path / "rows.jsonl")


CHANGES: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "lost": (lambda rows: rows.pop(3), "holds 9 answers, but 10 rows were asked"),
    "repeated": (lambda rows: rows.extend(rows[:2] * 4), "holds 18 answers, but 10 rows were asked"),
    "one in another's place": (lambda rows: rows.__setitem__(3, rows[2]), "does not hold the answers to the rows"),
    "reordered": (lambda rows: rows.reverse(), "does not hold the answers to the rows"),
    "another true box": (lambda rows: rows[3].update(boxes=[[0.0, 0.0, 1.0, 1.0]]), "does not hold the answers"),
    "another text": (lambda rows: rows[3].update(text=rows[2]["text"]), "was changed since it was written"),
    "a text that is a number": (lambda rows: rows[3].update(text=5), "line 4 of .* is no answer .*its text is 5"),
    "a text that is missing": (lambda rows: rows[3].pop("text"), "line 4 of .* is no answer"),
    "an id that is a number": (lambda rows: rows[3].update(id=5), "its id is 5"),
    "a box of text": (lambda rows: rows[3].update(boxes=[["0", "0", "1", "1"]]), "its box is"),
    "a box that is NaN": (lambda rows: rows[3].update(boxes=[[0, 0, float("nan"), 1]]), "its box is"),
    "a box without an area": (lambda rows: rows[3].update(boxes=[[5.0, 5, 5, 9]]), "its box is .*which has no area"),
    "a box outside": (lambda rows: rows[3].update(boxes=[[900.0, 5, 950, 9]]), "which lies wholly outside"),
    "a box of three": (lambda rows: rows[3].update(boxes=[[0, 0, 1]]), "its box is"),
    "a size of truths": (lambda rows: rows[3].update(size_hw=[True, 5]), "its size_hw is"),
    "a size of 0": (lambda rows: rows[3].update(size_hw=[0, 5]), "its size_hw is"),
    "an error that is true": (lambda rows: rows[3].update(error=True), "its error is True"),
}


@pytest.mark.parametrize("case", list(CHANGES))
def test_changed_answers_are_refused_by_each_that_reads_them(case: str, finished: Path, tmp_path: Path) -> None:
    """Two wrong answers of six gone made 66.7 % to 100 %, without a word."""
    change, message = CHANGES[case]
    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy" / ANSWERS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(VPPError, match=message):
        rescore(tmp_path / "copy", "default", tmp_path / "out")
    with pytest.raises(VPPError, match=message):
        compare(load_evaluation(finished), load_evaluation(tmp_path / "copy"))
    with pytest.raises(VPPError, match=message):  # the same command, that finds it finished
        evaluate(Stub(say), ROWS, protocol("default"), tmp_path / "copy", batch_size=2, about=about(finished))
    assert not (tmp_path / "out").exists()


def about(folder: Path) -> dict[str, Any]:
    settings = load_evaluation(folder).settings
    own = "protocol protocol_sha256 box_format rows rows_sha256 batch_size batches_sha256 answers_sha256".split()
    return {key: value for key, value in settings.items() if key not in own}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_ends_with_the_same_answers_or_a_sentence(damage: Callable[..., None], tmp_path: Path) -> None:
    whole = evaluate(Stub(say), ROWS, protocol("default"), tmp_path / "whole", batch_size=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half" / ANSWERS).unlink()
    for rank in range(2):
        ledger = Ledger(tmp_path / "half", rank)
        for number in range(rank, 4, 2):
            ledger.append(number, whole[2 * number : 2 * number + 2])
    for path in files_of(tmp_path / "half"):
        for seed in range(4):
            damaged(tmp_path / "half", tmp_path / "copy", path, damage, f"{path.name} {damage.__name__} {seed}")
            try:
                found = evaluate(Stub(say), ROWS, protocol("default"), tmp_path / "copy", batch_size=2)
            except VPPError:
                continue
            assert found == whole
