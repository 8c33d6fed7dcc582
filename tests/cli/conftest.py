import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vpp_plugins.pocket
from tests.tiny import attached, image
from vpp_plugins.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vpp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in an empty folder; returns its exit code, what it printed, and what it complained of."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vpp", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def pocket(monkeypatch: pytest.MonkeyPatch, toy: None) -> list[bool]:
    """In the pocket model's place a toy that always gives one answer; returns which of the twins were loaded."""
    loaded: list[bool] = []

    def load(vpp: bool, *, name: str = "pocket") -> tuple[Any, Any]:
        assert name == "pocket"
        loaded.append(vpp)
        model, processor = attached()
        processor.batch_decode = lambda ids, **_: ["[0.1, 0.2, 0.3, 0.4]" for _ in ids]
        return model, processor

    monkeypatch.setattr(vpp_plugins.pocket, "load_pocket", load)
    return loaded


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    image(0, (100, 100)).save(path)
    return path


def is_one_sentence(complaint: str) -> bool:
    return complaint.startswith("vpp: ") and complaint.count("\n") == 1 and complaint.endswith(("\n",))
