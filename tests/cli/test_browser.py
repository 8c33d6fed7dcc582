import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.conftest import Run, is_one_sentence


@pytest.fixture(autouse=True)
def gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="6.1.2"))


def test_export_writes_the_folder_and_names_it(vpp: Run) -> None:
    assert vpp("app", "--export", "shared") == (0, "The app: shared\n", "")
    assert Path("shared/app.py").is_file()


def test_a_folder_that_is_no_model_is_one_sentence(vpp: Run, tmp_path: Path) -> None:
    code, _, err = vpp("app", "--model", tmp_path)
    assert code == 1
    assert is_one_sentence(err)
    assert "could not be loaded as an image-text-to-text model" in err
