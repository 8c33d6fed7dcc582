"""The example package is what a stranger would write: it installs, is found, and its own test holds."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "examples/toy_adapter"


def run(arguments: Sequence[str], folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into, without a network."""
    pytest.importorskip("hatchling", reason="the package is built with it")
    target = tmp_path_factory.mktemp("site")
    quietly = ["-q", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    finished = run(["-m", "pip", "install", *quietly, "--target", str(target), str(PACKAGE)], target, target)
    assert finished.returncode == 0, finished.stderr
    return target


def test_its_own_test_holds(site: Path, tmp_path: Path) -> None:
    """Warnings are errors there too: nothing about a stranger's adapter is worth one."""
    test = str(PACKAGE / "test_vpp_toy_adapter.py")
    finished = run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-c", os.devnull, test], tmp_path, site
    )

    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "1 passed" in finished.stdout


def test_the_command_line_lists_it(site: Path, tmp_path: Path) -> None:
    finished = run(["-c", "from vpp_plugins.cli import main; main()", "plugins"], tmp_path, site)

    assert finished.returncode == 0, finished.stderr
    assert "toy_mllm" in finished.stdout


def test_nothing_is_left_in_the_source(site: Path) -> None:
    assert sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__") == [
        "README.md",
        "pyproject.toml",
        "test_vpp_toy_adapter.py",
        "toy_mllm.py",
        "vpp_toy_adapter.py",
    ]
