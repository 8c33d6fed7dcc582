"""LoRA, prompts and projector learn together, in every named family: 32 samples are learned by heart."""

from pathlib import Path

import pytest
import torch

from tests.families import FAMILIES, attached_family
from tests.train.runs import recipe, samples, write_data
from vpp_plugins.attach.attach import unwrap
from vpp_plugins.attach.host import active_vpp
from vpp_plugins.train.model import prepare_for_training
from vpp_plugins.train.run import train

pytestmark = pytest.mark.usefixtures("toy")

NAMED = [name for name in FAMILIES if name in ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", NAMED)
def test_lora_lowers_the_loss_tenfold(family: str, tmp_path: Path) -> None:
    data = write_data(tmp_path, samples(32))
    model, processor = attached_family(family)
    # a random head is so flat that no hidden state makes it sure of a word; a trained one is not
    model.get_output_embeddings().weight.data.mul_(10)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings = recipe(
        data,
        tmp_path / "out",
        lora_scope="llm",
        lora_r=16,
        lora_dropout=0.0,
        learning_rate=4e-3,
        max_steps=200,
        per_device_train_batch_size=8,
        save_steps=200,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
    )

    trained = train(settings, model=model, processor=processor)

    losses = [entry["loss"] for entry in trained.history if "loss" in entry]
    assert sum(losses[-5:]) / 5 < losses[0] / 10
    host = unwrap(model)
    moved = {
        name for name, value in active_vpp(host).state_dict().items() if not torch.equal(value, before[f"vpp.{name}"])
    }
    assert moved == set(active_vpp(host).state_dict())
    after = dict(host.named_parameters())
    projector = [name for name in after if ".modules_to_save." in name]
    assert projector
    assert all(not torch.equal(after[name], before[name.replace(".modules_to_save.default", "")]) for name in projector)
    assert all(value.any() for name, value in after.items() if "lora_B" in name)
    frozen = [name for name in after if ".base_layer." in name]
    assert all(torch.equal(after[name], before[name.replace(".base_layer", "")]) for name in frozen)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_lora_trains(family: str, tmp_path: Path) -> None:
    model, _ = attached_family(family)

    model, groups = prepare_for_training(model, recipe(tmp_path, tmp_path, lora_scope="llm", lora_r=2))

    names = {str(group["name"]) for group in groups}
    assert names == {"lora", "projector", "vpp.global", "vpp.local", "vpp.projector"}
    numbers = {id(p) for group in groups for p in group["params"]}
    assert numbers == {id(p) for p in model.parameters() if p.requires_grad}
