"""The chats that a model should not forget: their loss before and after."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.families import attached_family
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")


def run(data: Path, out: Path, **changes: Any) -> Any:
    model, processor = attached_family("llava")
    return train(recipe(data, out, **changes), model=model, processor=processor)


def kept(trained: Any) -> list[tuple[int, float]]:
    return [(entry["step"], entry["kept_loss"]) for entry in trained.history if "kept_loss" in entry]


def test_is_measured_before_and_after_and_changes_nothing(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(8))
    chats = write_data(tmp_path / "chats", samples(11, text_only=range(9)))  # two batches, one of text alone
    plain = run(data, tmp_path / "plain")

    trained = run(data, tmp_path / "run", keep={"data": str(chats)})

    (first, before), (last, after) = kept(trained)
    assert (first, last) == (0, 4)
    assert 0 < after != before > 0
    expected, found = (load_file(one.folder / "vpp.safetensors") for one in (plain, trained))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert "Loss on the chats to keep" in (tmp_path / "run/report.html").read_text()


def test_the_terminal_shows_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured after the last step was logged when the bar was gone, and not printed."""
    data = write_data(tmp_path / "data", samples(8))
    first, last = kept(run(data, tmp_path / "run", keep={"data": str(data)}))

    printed = capsys.readouterr().out
    assert all(f"step {step}/4  kept_loss {loss:.4g}" in printed for step, loss in (first, last))


def test_is_the_loss_of_the_learned_tokens(tmp_path: Path) -> None:
    """Of one batch it is what the model itself says, before anything is learned."""
    data = write_data(tmp_path / "data", samples(8))

    losses = kept(
        run(data, tmp_path / "run", keep={"data": str(data)}, learning_rate=0.0, per_device_train_batch_size=8)
    )

    history = run(data, tmp_path / "plain", learning_rate=0.0, per_device_train_batch_size=8).history
    assert losses[0][1] == pytest.approx(history[0]["loss"], rel=1e-5)
    assert losses[0][1] == losses[1][1]


def test_a_resumed_run_is_measured_at_its_end_only(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(8))
    run(data, tmp_path / "run", max_steps=2)

    again = run(data, tmp_path / "run", keep={"data": str(data)}, resume_from_checkpoint="auto")

    assert [step for step, _ in kept(again)] == [4]


def test_a_table_that_is_wrong_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples(8))
    with pytest.raises(VPPError, match="keep has no key 'weight'"):
        run(data, tmp_path / "run", keep={"data": str(data), "weight": 2})
    with pytest.raises(VPPError, match="keep names its file"):
        run(data, tmp_path / "other", keep={"max_samples": 2})
