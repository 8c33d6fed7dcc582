"""The example of VPP-LLaVA's page, on the recorded tiny checkpoint."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.adapters.conftest import converted, small_resnet  # noqa: F401 - fixtures
from tests.reference import FOLDER

EXAMPLE = Path(__file__).parents[2] / "examples/vpp_llava.py"


@pytest.mark.filterwarnings("ignore::vpp_plugins.UntrainedVPPWarning")
def test_it_loads_grounds_and_trains(
    converted: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(converted), str(FOLDER / "image0.png"), "the cup"])

    runpy.run_path(str(EXAMPLE), run_name="__main__")

    printed = capsys.readouterr().out
    assert "ids are learned" in printed
    assert "vpp.local vectors      2e-05" in printed
    assert printed.rstrip().endswith("axes: cross")
