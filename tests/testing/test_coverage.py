"""The coverage table: what it says of the installed transformers, and that the page and the command show the same."""

import json
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import modeling_auto

from vpp_plugins.cli import main
from vpp_plugins.testing.coverage import RECORD, Coverage, model_coverage, recorded_coverage, recorded_version

PAGE = Path(__file__).parents[2] / "docs/coverage.md"


def test_every_model_type_of_the_installed_transformers_has_a_row() -> None:
    rows = {row.model_type: row.host for row in model_coverage()}

    assert rows == dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def test_of_97_model_types_90_take_the_local_prompt_and_88_the_global_one() -> None:
    rows = recorded_coverage().values()

    assert len(rows) == 97
    assert sum(row.local_prompt == "exact" for row in rows) == 90
    assert sum(row.global_prompt == "yes" for row in rows) == 88


def test_what_takes_no_vpp_has_a_reason() -> None:
    for row in recorded_coverage().values():
        takes_all = row.local_prompt == "exact" and row.global_prompt == "yes"
        assert takes_all or row.note, row.model_type


def test_a_model_type_that_the_record_does_not_know_is_untested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "brand_new", "BrandNewModel")

    row = {row.model_type: row for row in model_coverage()}["brand_new"]

    assert row == Coverage("brand_new", "BrandNewModel", "generic", local_prompt="untested", global_prompt="untested")


def test_the_page_shows_the_record() -> None:
    shown = [line.strip("| ").split(" | ")[0] for line in PAGE.read_text().splitlines() if line.startswith("| `")]

    assert shown == [f"`{model_type}`" for model_type in sorted(recorded_coverage())]
    for row in recorded_coverage().values():
        cells = f"| `{row.model_type}` | {row.adapter} | {row.layout} | {row.box_format} | {row.local_prompt} | "
        assert cells in PAGE.read_text()
    assert f"transformers {recorded_version()}" in PAGE.read_text()


def test_the_record_is_sorted_as_the_recorder_writes_it() -> None:
    models = [row["model_type"] for row in json.loads(RECORD.read_text())["models"]]

    assert models == sorted(models)


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vpp", "plugins", "--models"])
    monkeypatch.setenv("COLUMNS", "160")

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code in (0, None)
    out = capsys.readouterr().out
    assert "internvl" in out
    assert "it reads proteins, not images" in out
    assert f"take VPP. Tested on tiny random models with transformers {recorded_version()}" in " ".join(out.split())
    assert transformers.__version__ in out
