import sys
from pathlib import Path

import pytest

from examples.pocket import main
from tests.tiny import toy_config
from vpp_plugins import VPPProcessor, attach_vpp, is_attached, save_vpp
from vpp_plugins.pocket import build_pocket, load_pocket


@pytest.fixture
def trained(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `vpp` and `plain` of a tiny model, as training leaves them."""
    folder = tmp_path_factory.mktemp("trained")
    model, processor = build_pocket(image_size=64, hidden_size=32, layers=2, heads=2, intermediate_size=48)
    for name in ("plain", "vpp"):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    attach_vpp(model, toy_config())
    VPPProcessor(processor, model).save_pretrained(folder / "vpp")
    save_vpp(model, folder / "vpp")
    return folder


def test_two_trained_folders_become_weights_that_load(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pocket.py", *map(str, (trained / "vpp", trained / "plain", "--out", tmp_path))])

    main()

    assert is_attached(load_pocket(True, tmp_path)[0])
    plain, processor = load_pocket(False, tmp_path)
    assert not is_attached(plain)
    assert "<|vpp|>" not in processor.tokenizer.get_vocab()
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} <= {*printed.split()}
    assert printed.count("\nvpp eval ") == 3


def test_folders_in_the_wrong_order_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pocket.py", *map(str, (trained / "plain", trained / "vpp", "--out", tmp_path))])

    with pytest.raises(SystemExit):
        main()

    assert "the first folder must be of a model with prompts" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
