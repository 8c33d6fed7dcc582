"""A recipe's `losses`: named, weighed, brought by plugins, refused with the reason; and the keys that they replace."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import attached_family
from tests.tiny import attached, inputs_for, toy_config
from tests.train.runs import recipe, samples, write_data
from vpp_plugins import VPPError, hookimpl
from vpp_plugins.plugins.registry import manager
from vpp_plugins.train.collate import About
from vpp_plugins.train.losses import (
    SILENT,
    AuxiliaryLoss,
    answer_loss,
    build_losses,
    check_losses,
    read_language_model,
)
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")


class Pull(AuxiliaryLoss):
    """A stranger's loss, on the hidden states of a layer at the answers, with a weight of its own."""

    name = "pull"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.towards = nn.Parameter(torch.ones(()))
        self.catch("hidden", self.host.model.language_model.layers[0])
        self.seen: list[About] = []

    def forward(self, about: About, inputs: Mapping[str, Any], outputs: Any) -> Tensor:
        self.seen.append(about)
        hidden = self.caught.pop("hidden")
        assert outputs.logits.shape[:2] == inputs["labels"].shape == hidden.shape[:2]
        loss: Tensor = (hidden[inputs["labels"] != -100] - self.towards).square().mean()
        return loss


@pytest.fixture
def pulls() -> Any:
    """The losses that the plugin built."""
    built: list[Pull] = []

    class Brings:
        @hookimpl
        def vpp_loss(self, name: str, model: nn.Module, processor: Any) -> nn.Module | None:
            if name != "pull":
                return None
            built.append(Pull(model))
            return built[-1]

    plugin = Brings()
    manager().register(plugin)
    yield built
    manager().unregister(plugin)


def run(data: Path, out: Path, **changes: Any) -> Any:
    model, processor = attached_family("llava")
    return model, train(recipe(data, out, **changes), model=model, processor=processor)


def test_a_plugins_loss_sees_samples_inputs_and_outputs_and_resumes(tmp_path: Path, pulls: list[Pull]) -> None:
    data = write_data(tmp_path / "data", samples(8, text_only=[2]))
    _, plain = run(data, tmp_path / "plain", max_steps=1)
    whole, trained = run(data, tmp_path / "whole", losses=["pull:2"])

    assert pulls[0].weight == 2
    assert trained.history[0]["loss"] > plain.history[0]["loss"]
    assert pulls[0].towards != 1  # it learned
    assert [meta is None for about in pulls[0].seen for meta in about.metas].count(True) == 1
    assert all(sample.turns for about in pulls[0].seen for sample in about.samples)
    assert not whole.model.language_model.layers[0]._forward_hooks
    assert (tmp_path / "whole/checkpoint-2/pull_loss.safetensors").is_file()

    (tmp_path / "whole/checkpoint-4").rename(tmp_path / "away")
    (tmp_path / "whole/final").rename(tmp_path / "gone")
    again, _ = run(data, tmp_path / "whole", losses=["pull:2"], resume_from_checkpoint="auto")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert torch.equal(pulls[0].towards, pulls[1].towards)


def test_its_own_parameters_are_not_the_hosts(pulls: list[Pull]) -> None:
    model, processor = attached_family("llava")
    (loss,) = build_losses({"pull": 1.0}, model, processor)
    assert [name for name, _ in loss.named_parameters()] == ["towards"]
    model(**inputs_for(processor, [1]))
    assert list(loss.caught) == ["hidden"]
    loss.remove()
    assert not loss.caught


def test_an_unknown_loss_is_refused_with_the_nearest() -> None:
    model, processor = attached_family("llava")
    with pytest.raises(VPPError, match=r"no loss is called 'word'. Did you mean 'words'.*others come as plugins"):
        build_losses({"word": 1.0}, model, processor)


def test_a_loss_that_the_model_cannot_have_says_why() -> None:
    model, processor = attached(config=toy_config(local_vpp=None))
    with pytest.raises(VPPError, match="no local prompt: leave it out"):
        build_losses({"detection": 1.0}, model, processor)
    with pytest.raises(VPPError, match="tokenizer with a token for every number"):
        answer_loss({"coordinates": 1.0}, processor.tokenizer)
    with pytest.raises(VPPError, match=r"whose weight is 1, but is given 0\.5"):
        check_losses({"coordinates": 0.5})


def of(**values: Any) -> Recipe:
    return Recipe.from_dict({"model": "m", "data": "d", "output_dir": "o", **values})


def test_weights_are_written_behind_the_name() -> None:
    found = of(losses=["words:0.3", "detection", "coordinates:0"]).loss_weights()
    assert found == {"words": 0.3, "detection": 1.0}


@pytest.mark.parametrize("entry", ["words:", "words:much", ":1", "words:-1", "words:inf"])
def test_a_faulty_entry_is_refused(entry: str) -> None:
    with pytest.raises(VPPError, match="written name:weight"):
        of(losses=[entry])


def test_a_loss_is_named_once() -> None:
    with pytest.raises(VPPError, match="names one loss twice"):
        of(losses=["words", "words:0.3"])


def test_the_keys_of_0_1_work_with_one_warning_that_says_what_to_write() -> None:
    with pytest.warns(DeprecationWarning, match=r"these keys work until 0\.2") as warned:
        found = of(losses=["detection:1"], word_alignment=0.3, detection_loss=0, soft_boxes=True)
    assert found.loss_weights() == {"words": 0.3, "coordinates": 1.0}
    assert len(warned) == 1
    assert 'losses = ["words:0.3", "coordinates:1"]' in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(losses=["words:0.3"])


def test_three_losses_do_without_the_language_model() -> None:
    assert {"words", "alignment", "detection"} == SILENT
    assert not read_language_model({"words": 1.0, "detection": 0.1})
    assert read_language_model({"words": 1.0, "a plugin's": 1.0})
