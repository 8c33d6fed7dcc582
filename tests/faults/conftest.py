"""The reported cases, each a folder `NN-name` with its inputs and a `run.py` that ends with 0 where all is right.

They stay as they were reported; where a module has moved, the import changes, never the check.
"""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def run_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """Run a case in this process, and return what it printed; its subprocesses see this checkout."""

    def run(case: Path) -> str:
        root = HERE.parent.parent
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "adapters")]))
        monkeypatch.setattr(sys, "argv", [str(case)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(
            sys.modules, "_common", raising=False
        )  # it looks at where the case lies when it is imported
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(case))
        printed = capsys.readouterr().out
        sys.modules.pop("_common", None)
        assert ended.value.code == 0, printed
        return printed

    return run
