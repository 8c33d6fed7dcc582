"""`vpp study`, so far as nothing is trained; tests/train/study trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, is_one_sentence
from tests.train.study.conftest import written

__all__ = ["written"]

Written = Callable[..., Path]


def test_the_plan_is_printed(vpp: Run, written: Written) -> None:
    code, out, err = vpp("study", "plan", written())

    assert (code, err) == (0, "")
    assert out.count("vpp train recipe.toml") == 4
    assert "sbatch --array=1-4" in out


def test_a_report_of_nothing_yet(vpp: Run, written: Written) -> None:
    code, out, err = vpp("study", "report", written())

    assert (code, out, err) == (0, "The report: out/report.md and out/report.html\n", "")
    assert "0 of 4 runs are finished" in Path("out/report.md").read_text()


@pytest.mark.parametrize("command", [(), ("run",), ("plan",), ("report",)])
def test_arms_that_are_not_fair_are_shown(vpp: Run, written: Written, command: tuple[str, ...]) -> None:
    arms: dict[str, Any] = {"one": {}, "two": {"max_steps": 1}}

    code, out, err = vpp("study", *command, written(arms=arms))

    assert code == 1
    assert [line.split() for line in out.splitlines()] == [["one", "two"], ["max_steps", "2", "1"]]
    assert is_one_sentence(err)
    assert 'say varies = ["max_steps"]' in err


def test_the_help_has_every_key(vpp: Run) -> None:
    _, told, _ = vpp("study", "--help")
    keys = "recipe output_dir seeds budgets contrasts arms sets settings varies curve shuffled data".split()
    assert [key for key in keys if key not in told] == []
