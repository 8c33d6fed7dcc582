"""Every reported case, by the number that it was reported under."""

from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("case", sorted(HERE.glob("[0-9]*/run.py")), ids=lambda case: case.parent.name)
def test_it_ends_well(case: Path, run_case: Callable[[Path], str]) -> None:
    assert run_case(case).rstrip().endswith("PASS")
