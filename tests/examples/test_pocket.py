import sys
from dataclasses import replace
from pathlib import Path

import pytest

from examples.pocket import main
from tests.pocket.little_smollm2 import load_trained, write_host
from tests.tiny import TOY_GLOBAL, toy_config
from vpp_plugins import Grounder, VPPProcessor, attach_vpp, is_attached, save_vpp
from vpp_plugins.images import IMAGENET_MEAN, IMAGENET_STD
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


def test_what_smollm2_learned_ships_with_its_card(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    host = write_host(Path("out/smollm2"))
    config = toy_config(global_vpp=replace(TOY_GLOBAL, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD))
    arms = {name: Grounder(*load_trained(host, config if name == "vpp" else None)) for name in ("vpp", "plain")}
    monkeypatch.setattr("examples.pocket.load_grounder", lambda name, **_: arms[name])
    Path("vpp").mkdir()
    Path("vpp/README.md").write_text("the card")
    monkeypatch.setattr(sys, "argv", ["pocket.py", "--name", "smollm2", "vpp", "plain", "--out", "shipped"])

    main()

    assert is_attached(load_pocket(True, "shipped", name="smollm2")[0])
    assert Path("shipped/README.md").read_text() == "the card"
    assert "compare out/eval/SPLIT/smollm2-without-vpp out/eval/SPLIT/smollm2 " in capsys.readouterr().out
