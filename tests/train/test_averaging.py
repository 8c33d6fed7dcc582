"""The average of the weights: what it is, that it resumes to the bit, and that a run ends with it."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.families import attached_family
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError
from vpp_plugins.train.optim import AVERAGE_FILE, WeightAverage
from vpp_plugins.train.run import train
from vpp_plugins.train.trainer import VPPTrainer

DECAY = 0.6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", samples(8))


def run(data: Path, out: Path, **changes: Any) -> Any:
    model, processor = attached_family("llava")
    return model, train(recipe(data, out, **changes), model=model, processor=processor)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for part in sorted(folder.glob("*.safetensors")) for name, value in load_file(part).items()}


class TestWeightAverage:
    def test_follows_the_weights(self) -> None:
        weight = nn.Parameter(torch.zeros(3))
        average = WeightAverage([weight], 0.5)
        for step in (1, 2, 100):
            weight.data.fill_(step)
            average.update(step)

        expected = 0.0
        for step in (1, 2, 100):  # the decay of the first steps is smaller
            decay = min(0.5, step / (step + 10))
            expected = decay * expected + (1 - decay) * step
        assert average.values[0].tolist() == pytest.approx([expected] * 3)
        assert weight.tolist() == [100.0] * 3

    def test_is_in_the_weights_place_for_a_while(self) -> None:
        weight = nn.Parameter(torch.ones(2))
        average = WeightAverage([weight], 0.9)
        weight.data.fill_(5.0)

        with contextlib.suppress(ZeroDivisionError), average.swapped():
            within = weight.tolist()
            raise ZeroDivisionError

        assert within == [1.0, 1.0]
        assert weight.tolist() == [5.0, 5.0]
        assert average.values[0].tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("decay", [-0.1, 1.0, 998.0])
    def test_a_decay_that_is_none_is_refused(self, decay: float) -> None:
        with pytest.raises(VPPError, match="decay between 0 and 1"):
            WeightAverage([], decay)

    def test_the_average_of_another_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(VPPError, match="without average_weights"):
            WeightAverage([], 0.5).load(tmp_path)
        WeightAverage([nn.Parameter(torch.ones(2))], 0.5).save(tmp_path)
        with pytest.raises(VPPError, match="other parameters"):
            WeightAverage([nn.Parameter(torch.ones(3))], 0.5).load(tmp_path)


@pytest.mark.usefixtures("toy")
class TestRun:
    def test_ends_with_the_average_of_the_same_steps(self, data: Path, tmp_path: Path) -> None:
        kept: dict[str, list[Any]] = {}
        for name, decay in (("plain", 0.0), ("averaged", DECAY)):
            run(data, tmp_path / name, average_weights=decay, save_steps=1)
            kept[name] = [weights(tmp_path / name / f"checkpoint-{step}") for step in range(1, 5)]
        ended = weights(tmp_path / "averaged/final")
        # checkpoints hold the weights that go on learning
        for plain, averaged in zip(kept["plain"], kept["averaged"], strict=True):
            assert all(torch.equal(value, averaged[name]) for name, value in plain.items())
        last = kept["plain"][-1]
        name = "local_prompt.projector.0.weight"
        found = ended[name]
        assert not torch.equal(found, last[name])
        first = weights_before(name)
        for step, made in enumerate(kept["plain"], start=1):
            decay = min(DECAY, step / (step + 10))
            first = decay * first + (1 - decay) * made[name]
        torch.testing.assert_close(found, first)
        assert not (tmp_path / "averaged/final" / AVERAGE_FILE).exists()

    def test_resumes_to_the_bit(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = run(data, tmp_path / "whole", average_weights=DECAY)[1].folder
        step = VPPTrainer.training_step
        taken = []

        def stops(self: Any, *args: Any) -> Any:
            if len(taken) == 3:
                raise KeyboardInterrupt
            taken.append(1)
            return step(self, *args)

        monkeypatch.setattr(VPPTrainer, "training_step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "cut", average_weights=DECAY)
        monkeypatch.setattr(VPPTrainer, "training_step", step)
        again = run(data, tmp_path / "cut", average_weights=DECAY, resume_from_checkpoint="auto")[1].folder

        expected, found = weights(whole), weights(again)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())

    def test_is_what_kept_chats_are_asked_of(self, data: Path, tmp_path: Path) -> None:
        """With a decay near 1 the average stays at the first weights, so nothing is forgotten."""
        losses = {}
        for decay in (0.0, DECAY):
            history = run(
                data, tmp_path / str(decay), keep={"data": str(data)}, average_weights=decay, learning_rate=1e-2
            )[1].history
            losses[decay] = [entry["kept_loss"] for entry in history if "kept_loss" in entry]
        assert losses[0.0][0] == losses[DECAY][0]
        assert losses[0.0][1] != losses[DECAY][1]

    def test_is_refused_with_the_best_checkpoint(self, data: Path, tmp_path: Path) -> None:
        changes = {"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"}
        with pytest.raises(VPPError, match="drop one"):
            run(data, tmp_path / "run", average_weights=DECAY, **changes)


def weights_before(name: str) -> torch.Tensor:
    model, _ = attached_family("llava")
    value: torch.Tensor = model.vpp.state_dict()[name].clone()
    return value
