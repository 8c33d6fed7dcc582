"""The auxiliary detection loss: it teaches the generator, leaves no trace in what is saved, and can be taken off."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import attached, inputs_for, tiny_llava, toy_config
from vpp_plugins import VPPError, save_vpp
from vpp_plugins.data.sample import Describe, Locate, Sample, Talk
from vpp_plugins.train.losses.detection import AuxiliaryDetection, named_objects

pytestmark = pytest.mark.usefixtures("toy")
BOX, OTHER = (4.0, 4.0, 20.0, 20.0), (10.0, 2.0, 38.0, 22.0)


def samples(count: int = 2) -> list[Sample]:
    return [Sample(str(n), "a.png", 40, 24, (Locate("cup", (BOX,)), Locate("all", (BOX, OTHER)))) for n in range(count)]


@pytest.fixture
def host() -> Any:
    return attached(tiny_llava().train())


class TestLoss:
    def test_reaches_every_parameter_of_the_generator_and_nothing_behind_it(self, host: Any) -> None:
        model, processor = host
        task = AuxiliaryDetection(model)
        model(**inputs_for(processor, [1, 1]))
        task.loss(named_objects(samples())).backward()
        local = model.vpp.local_vpp
        assert all(p.grad is not None and p.grad.any() for p in local.generator.parameters())
        assert all(p.grad is None for p in local.projector.parameters())
        assert all(p.grad is not None for p in task.parameters())

    def test_teaches_the_queries_where_things_are(self, host: Any) -> None:
        model, processor = host
        task = AuxiliaryDetection(model)
        inputs, objects = inputs_for(processor, [1, 1]), named_objects(samples())
        optimizer = torch.optim.Adam([*task.parameters(), *model.vpp.local_vpp.generator.parameters()], lr=0.01)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            model(**inputs)
            loss = task.loss(objects)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0]

    def test_the_weight_scales_it(self, host: Any) -> None:
        model, processor = host
        inputs, objects = inputs_for(processor, [1, 1]), named_objects(samples())
        once, twice = AuxiliaryDetection(model), AuxiliaryDetection(model, weight=2.0)
        model(**inputs)
        assert twice.loss(objects).item() == pytest.approx(2 * once.loss(objects).item())

    def test_without_images_it_is_zero_with_zero_gradients(self, host: Any) -> None:
        """Processes that share a model may have batches without images: each must still have a gradient to give."""
        model, processor = host
        task = AuxiliaryDetection(model)
        model(**inputs_for(processor, [0]))
        loss = task.loss(named_objects([]))
        loss.backward()
        assert loss == 0
        assert all(p.grad is not None and not p.grad.any() for p in task.parameters())

    def test_each_forward_counts_once(self, host: Any) -> None:
        model, processor = host
        task = AuxiliaryDetection(model)
        model(**inputs_for(processor, [1, 1]))
        task.loss(named_objects(samples()))
        assert task.loss(named_objects(samples())) == 0

    def test_another_count_of_images_is_refused(self, host: Any) -> None:
        model, processor = host
        task = AuxiliaryDetection(model)
        model(**inputs_for(processor, [1, 1]))
        with pytest.raises(VPPError, match="2 images, but objects of 3"):
            task.loss(named_objects(samples(3)))


class TestTraces:
    def test_the_model_and_its_files_are_as_without(self, host: Any, tmp_path: Path) -> None:
        model, processor = host
        inputs = inputs_for(processor, [1])
        names = model.state_dict().keys()
        before = model.eval()(**inputs).logits
        task = AuxiliaryDetection(model)
        assert torch.equal(model(**inputs).logits, before)
        assert model.state_dict().keys() == names
        save_vpp(model, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"README.md", "vpp.safetensors", "vpp_config.json"}
        task.remove()
        assert not model.vpp.local_vpp.generator._forward_hooks

    def test_the_random_state_is_left_alone(self, host: Any) -> None:
        model, _ = host
        state = torch.get_rng_state()
        first, again = AuxiliaryDetection(model), AuxiliaryDetection(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))

    def test_heads_are_saved_and_loaded(self, host: Any, tmp_path: Path) -> None:
        model, _ = host
        first, other = AuxiliaryDetection(model), AuxiliaryDetection(model, seed=1)
        first.save(tmp_path)
        other.load(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
        with pytest.raises(VPPError, match="saved without the detection loss"):
            other.load(tmp_path / "elsewhere")

    def test_needs_a_local_prompt(self) -> None:
        model, _ = attached(config=toy_config(local_vpp=None))
        with pytest.raises(VPPError, match="no local prompt"):
            AuxiliaryDetection(model)


class TestObjects:
    def test_every_box_that_is_spoken_of_counts_once(self) -> None:
        turns = (Locate("cup", (BOX,)), Describe((BOX,), "red"), Describe((OTHER,), "blue"), Talk("?", "!", (BOX,)))
        objects = named_objects([Sample("0", "a.png", 40, 24, turns), Sample("1", "b.png", 40, 24, ())])
        assert objects.classes.tolist() == [[0, 0], [-1, -1]]
        assert objects.boxes_cxcywh[0, 0].tolist() == pytest.approx([12 / 40, 20 / 40, 16 / 40, 16 / 40])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_beside_a_sharded_model() -> None:
    """FSDP2 frees the prompts' weights after their forward: the loss must reach the generator all the same."""
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-m", "tests.train.detection_shards"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'adapters'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.endswith("held")
