"""Files of answers that something else than an evaluation has touched."""

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.evaluate.conftest import Stub, make_rows, truthful
from vpp_plugins import VPPError
from vpp_plugins.evaluate.answers import ANSWERS, Answer, Ledger, read_answers
from vpp_plugins.evaluate.protocol import protocol
from vpp_plugins.evaluate.run import evaluate

BROKEN = [b"{", b"\xff\xfe", b"17", b"[]", b"[" * 100_000, b"\0" * 40]
BROKEN += [b'{"batch": 1}', b'{"batch": "x", "answers": []}', b'{"batch": 0, "answers": [7]}']


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_of_the_ledger_is_named_and_nothing_is_lost(line: bytes, tmp_path: Path) -> None:
    """It ended the evaluation with a traceback."""
    rows = make_rows(6)
    answers = evaluate(Stub(truthful(rows)), rows, protocol("default"), tmp_path / "whole", batch_size=2)
    ledger = Ledger(tmp_path, 0)
    ledger.append(0, answers[:1])
    with ledger.file.open("ab") as file:
        file.write(line + b"\n")
    ledger.append(2, answers[1:2])
    before = ledger.file.read_bytes()

    with pytest.raises(VPPError, match=r"line 2 of '.*batches-0000.jsonl' is no batch of answers .*: delete that line"):
        ledger.read()
    assert ledger.file.read_bytes() == before
    ledger.file.write_bytes(before.replace(line + b"\n", b"", 1))
    assert ledger.read() == {0: answers[:1], 2: answers[1:2]}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_answer_is_named(line: bytes, tmp_path: Path) -> None:
    rows = make_rows(2)
    evaluate(Stub(truthful(rows)), rows, protocol("default"), tmp_path)
    with (tmp_path / ANSWERS).open("ab") as file:
        file.write(line + b"\n")

    with pytest.raises(VPPError, match=r"line 3 of '.*answers.jsonl' is no answer .*delete it and run"):
        read_answers(tmp_path / ANSWERS)


def test_answers_read_back_as_they_were() -> None:
    row = make_rows(1)[0]
    for answer in (Answer.of(row, "a\u2028b\x85\r\n", None), Answer.of(row, "", None, error="no image")):
        assert Answer.from_json(asdict(answer)) == answer
