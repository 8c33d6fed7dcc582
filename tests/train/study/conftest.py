"""A study's file and its base recipe; nothing is loaded by them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import QUICK
from vpp_plugins.train.study import Study

RECIPE = {**QUICK, "model": "host", "data": "data.jsonl", "output_dir": "unused", "max_steps": 2, "save_steps": 1}
STUDY: dict[str, Any] = {
    "recipe": "recipe.toml",
    "output_dir": "out",
    "seeds": [0, 1],
    "arms": {"faint": {"global_vpp.alpha": 0.99}, "strong": {"global_vpp.alpha": 0.5}},
    "sets": {"photos": {"data": "photos"}},
}
Written = Callable[..., Path]


def toml(values: dict[str, Any], table: str = "") -> str:
    """Flat keys first, then tables."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"[{table}]"] if table else []
    lines += [key + " = " + json.dumps(value).replace('": ', '" = ') for key, value in plain.items()]
    named = {f"{table}.{json.dumps(key) if '/' in key else key}".strip("."): value for key, value in tables.items()}
    return "\n".join([*lines, *(toml(value, name) for name, value in named.items())]) + "\n"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Write a study with changes, None to leave a key out, and its recipe into an empty folder, and go there."""
    monkeypatch.chdir(tmp_path)

    def write(base: dict[str, Any] | None = None, **changes: Any) -> Path:
        Path("recipe.toml").write_text(toml({**RECIPE, **(base or {})}))
        values = {key: value for key, value in {**STUDY, **changes}.items() if value is not None}
        Path("study.toml").write_text(toml(values))
        return Path("study.toml")

    return write


@pytest.fixture
def study(written: Written) -> Callable[..., Study]:
    def load(**changes: Any) -> Study:
        return Study.load(written(**changes))

    return load
