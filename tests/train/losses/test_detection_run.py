"""A recipe's loss "detection": it reaches the queries, resumes to the bit, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import attached_family
from tests.train.runs import SIZE, recipe, write_data
from tests.train.test_two_processes import launch
from vpp_plugins import VPPError
from vpp_plugins.data.sample import Locate, Sample, Talk
from vpp_plugins.train.losses.detection import HEADS_FILE
from vpp_plugins.train.run import train
from vpp_plugins.train.trainer import VPPTrainer

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    boxed = [Sample(f"b{n}", f"{n % 4}.png", *SIZE, (Locate("cup", ((4.0, 4.0, 20.0 + n, 20.0),)),)) for n in range(6)]
    said = [Sample(f"t{n}", "", 0, 0, (Talk("where is", "red cup"),)) for n in range(2)]
    return write_data(tmp_path / "data", boxed + said)


def run(data: Path, out: Path, **changes: Any) -> Any:
    model, processor = attached_family("llava")
    return model, train(recipe(data, out, **changes), model=model, processor=processor)


def test_adds_to_the_loss_and_changes_what_is_learned(data: Path, tmp_path: Path) -> None:
    plain, without = run(data, tmp_path / "plain", max_steps=2)
    model, with_it = run(data, tmp_path / "with", max_steps=2, losses=["detection"])
    assert with_it.history[0]["loss"] > without.history[0]["loss"] + 0.5
    generators = [host.vpp.local_vpp.generator.state_dict() for host in (plain, model)]
    assert any(not torch.equal(value, generators[1][name]) for name, value in generators[0].items())
    assert not model.vpp.local_vpp.generator._forward_hooks


def test_counts_the_same_however_a_batch_is_accumulated(data: Path, tmp_path: Path) -> None:
    """Trainer divides some losses by the steps of accumulation and others not: ours may not come out larger."""
    _, alone = run(data, tmp_path / "plain", max_steps=1, gradient_accumulation_steps=4)
    _, with_it = run(data, tmp_path / "with", max_steps=1, gradient_accumulation_steps=4, losses=["detection"])
    _, once = run(data, tmp_path / "once", max_steps=1, losses=["detection"])
    added = with_it.history[0]["loss"] - alone.history[0]["loss"]
    assert 0.5 < added < 1.5 * once.history[0]["loss"]


def test_heads_are_in_checkpoints_alone(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run", losses=["detection"])
    found = sorted(path.parent.name for path in (tmp_path / "run").rglob(HEADS_FILE))
    assert found == ["checkpoint-2", "checkpoint-4"]


def test_resumes_to_the_same_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(data, tmp_path / "whole", losses=["detection"])

    step = VPPTrainer.training_step

    def killed(self: Any, *args: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(VPPTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "killed", losses=["detection"])
    monkeypatch.undo()
    again, _ = run(data, tmp_path / "killed", losses=["detection"], resume_from_checkpoint="auto")

    expected, found = whole.state_dict(), again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_run_begun_without_it_is_not_resumed_with_it(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run")
    with pytest.raises(VPPError, match="saved without the detection loss"):
        run(data, tmp_path / "run", losses=["detection"], max_steps=6, resume_from_checkpoint="auto")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_keep_the_heads_equal(data: Path, tmp_path: Path) -> None:
    """Checkpoints hold the heads of one process: had the other's drifted away, a resumed run would end elsewhere."""
    whole = launch(data, tmp_path / "whole", 'losses=["detection"]')
    assert whole[0] == whole[1]
    launch(data, tmp_path / "two", 'losses=["detection"]')
    (tmp_path / "two/checkpoint-6").rename(tmp_path / "away")
    (tmp_path / "two/final").rename(tmp_path / "gone")
    assert launch(data, tmp_path / "two", 'losses=["detection"]', "resume_from_checkpoint=auto") == whole
