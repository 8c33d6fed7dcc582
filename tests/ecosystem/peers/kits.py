"""The environment of kits that ask for other versions than ours: `make` builds it in `.venv-kits`."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KITS = ROOT / ".venv-kits"


def run_kit(kit: str, command: list[str], folder: Path) -> str:
    """Run a module of the environment in `folder`, with this copy of the library, and return what it said.

    Skips with the reason where the environment has no such kit.
    """
    python, log = KITS / "bin" / "python", KITS / "pip.log"
    if not python.is_file():
        pytest.skip("no .venv-kits: `make test-all` builds it")
    if subprocess.run([python, "-c", f"import {kit}"], capture_output=True, check=False).returncode:
        errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")] if log.is_file() else []
        pytest.skip(f"{kit} is not in .venv-kits: {errors[0] if errors else 'pip said nothing'}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")]),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    finished = subprocess.run(
        [python, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-6000:]
    return finished.stdout
