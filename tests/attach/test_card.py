"""The model card: what a stranger needs who gets a folder of prompts, and nothing of this machine."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.prompts.generators.test_hf_detector import config_of
from tests.tiny import TOY_LOCAL, attached, image, tiny_llava, tiny_processor, toy_config
from vpp_plugins import VPPError, attach_vpp, load_vpp, save_vpp
from vpp_plugins.attach import put_scores
from vpp_plugins.attach.card import scores
from vpp_plugins.files import sealed

pytestmark = pytest.mark.usefixtures("toy")


def named(name: str) -> Any:
    model, _ = attached()
    model.config._name_or_path = name
    return model


def evaluation(folder: Path, model: str, **settings: Any) -> Path:
    figure = {"mean": 0.25, "low": 0.2, "high": 0.3}
    figures = {"acc_50": figure, "mean_iou": figure, "rows": 40}
    folder.mkdir()
    (folder / "results.json").write_text(
        json.dumps({"model": model, "data": "/home/me/val.jsonl", "figures": figures, **settings})
    )
    return folder


def test_its_lines_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    save_vpp(named("owner/tiny"), tmp_path / "prompts")
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "prompts/README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    tiny_llava().save_pretrained("owner/tiny")
    tiny_processor().save_pretrained("owner/tiny")
    image(0).save("photo.jpg")

    exec(code, {})

    assert "on no package index yet, `pip install '.[demo]'`, and:" in (tmp_path / "prompts/README.md").read_text()
    assert len([line for line in code.splitlines() if line]) == 5
    assert "<Grounding 'the dog'" in capsys.readouterr().out


def test_says_what_it_is_and_how_well_it_does_beside_its_control(tmp_path: Path) -> None:
    ours = evaluation(tmp_path / "a", "/home/me/final")
    control = evaluation(tmp_path / "b", "/home/me/final", prompts={"disabled": True})
    twin = evaluation(tmp_path / "c", "/home/me/out/final", prompts={})
    save_vpp(named("owner/tiny"), tmp_path / "prompts", evaluations=[ours, control, twin])

    card = ModelCard.load(tmp_path / "prompts/README.md")
    assert (card.data.base_model, card.data.library_name) == ("owner/tiny", "vpp-plugins")
    assert "| final | val.jsonl | 40 | 25.0 (20.0 to 30.0) | 25.0 (20.0 to 30.0) |" in card.text
    assert "| final, prompts off | val.jsonl | 40 |" in card.text
    assert "| final, without prompts | val.jsonl | 40 |" in card.text
    assert all(f"## {heading}" in card.text for heading in ("How to load it", "The prompts", "Licence", "Versions"))
    assert "/home" not in card.content


def test_scores_come_later_and_leave_what_somebody_wrote(tmp_path: Path) -> None:
    save_vpp(named("owner/tiny"), tmp_path / "prompts")
    path = tmp_path / "prompts/README.md"
    path.write_text(path.read_text() + "\n## Thanks\n\nTo all.\n")
    before = path.read_text()
    arms = [evaluation(tmp_path / name, f"/home/me/{name}") for name in ("control", "vpp")]

    put_scores(tmp_path / "prompts", arms, "The second minus the first: +1.")
    once = path.read_text()
    assert "| control | val.jsonl | 40 | 25.0 (20.0 to 30.0) |" in once
    assert once.index("| control |") < once.index("| vpp |") < once.index("+1.") < once.index("## Licence")
    start, end = once.index("## Scores"), once.index("## Licence")
    assert once[:start] + once[end:] == before
    put_scores(tmp_path / "prompts", arms, "The second minus the first: +1.")
    assert path.read_text() == once
    with pytest.raises(VPPError, match=r"has no model card \(README.md\): give a folder that `vpp train` or save_vpp"):
        put_scores(tmp_path, arms)


def test_a_detectors_folder_is_replaced_by_what_it_says(tmp_path: Path) -> None:
    """The prompts of a detector from a folder named that folder, so that they loaded nowhere else."""
    config = tmp_path / "detector/config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(config_of("conditional_detr")))
    options = {"config": str(config.parent)}
    local = replace(TOY_LOCAL, generator="hf_detector", generator_options=options)
    model, _ = attached(config=toy_config(local_vpp=local))
    save_vpp(model, tmp_path / "prompts")
    load_vpp(model, tmp_path / "prompts")

    assert str(tmp_path) not in (tmp_path / "prompts/vpp_config.json").read_text()
    config.unlink()
    there = attach_vpp(tiny_llava(), tmp_path / "prompts").vpp.state_dict()
    assert all(there[name].equal(value) for name, value in model.vpp.state_dict().items())


def test_no_local_path_gets_in(tmp_path: Path) -> None:
    save_vpp(named(str(tmp_path / "host")), tmp_path / "prompts")

    card = ModelCard.load(tmp_path / "prompts/README.md")
    assert card.data.base_model is None
    assert "# Visual Position Prompts for a llava model\n" in card.text
    assert "BASE_MODEL is the folder or hub id of a llava model, the one that they were trained on." in card.text
    assert "`prompts` is this folder; give the path to it." in card.text
    assert str(tmp_path) not in card.content


def test_a_card_of_ones_own_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    save_vpp(named("owner/tiny"), tmp_path)

    assert (tmp_path / "README.md").read_text() == "mine"


def test_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(VPPError, match=r"holds no scores of boxes .*: give a folder of `vpp eval run`"):
        save_vpp(named("owner/tiny"), tmp_path, evaluations=[tmp_path / "none"])


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 3},
        {"figures": []},
        {"figures": {"rows": 1, "acc_50": {"mean": "x"}, "mean_iou": 1}},
        {"prompts": 3},
        {"data": None},
        {"holds": "what was asked"},
    ],
)
def test_results_that_mean_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", "owner/model")
    values = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(values | changes))
    with pytest.raises(VPPError, match="holds no scores of boxes"):
        scores([folder])
    (folder / "results.json").write_text("[" * 100_000)
    with pytest.raises(VPPError, match="holds no scores of boxes"):
        scores([folder])


def test_results_that_were_changed(tmp_path: Path) -> None:
    """One digit of a sealed file was shown as the score."""
    folder = evaluation(tmp_path / "eval", "owner/model")
    path = folder / "results.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()), "results")))
    scores([folder])
    path.write_text(path.read_text().replace("0.", "0.9", 1))
    with pytest.raises(VPPError, match="its values were changed since they were written"):
        scores([folder])
