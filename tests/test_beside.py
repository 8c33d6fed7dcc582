"""The local prompt beside the vision encoder. Without a GPU, a second stream that is as late as can be stands in."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES, attached_family, family_inputs
from tests.tiny import TOY_LOCAL, attached, inputs_for
from vpp_plugins import VPPConfig, vpp_disabled
from vpp_plugins.attach import host_state
from vpp_plugins.beside import Beside

pytestmark = pytest.mark.usefixtures("toy")


class Late(Beside):
    """A second stream whose results are there at the very last moment, and are no numbers before."""

    def __init__(self) -> None:
        self.encoded = False
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.joined_with: list[int] = []

    @contextmanager
    def working(self, *read: Tensor) -> Iterator[None]:
        yield

    def hand_over(self, made: Tensor) -> Tensor:
        early = torch.full_like(made, torch.nan)
        self.pending.append((early, made))
        return early

    def join(self) -> None:
        self.encoded = True
        self.joined_with.append(len(self.pending))
        for early, made in self.pending:
            early.copy_(made)
        self.pending.clear()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    made: list[Late] = []

    def second_stream(device: torch.device) -> Late:
        made.append(Late())
        return made[-1]

    monkeypatch.setattr("vpp_plugins.beside.second_stream", second_stream)
    return made


def answers(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = model(**inputs).logits
        said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    return logits, said


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_reads_the_embeddings_after_its_vision_encoder(family: str, streams: list[Late]) -> None:
    model, processor = attached_family(family)
    inputs = family_inputs(processor, [2, 1])
    expected = answers(model, inputs)
    assert not streams

    model.vpp.two_streams = True
    found = answers(model, inputs)

    assert len(streams) == 2  # a forward, and a generate
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))


def test_the_wait_is_at_the_encoders_end(streams: list[Late]) -> None:
    model, processor = attached()
    model.vpp.two_streams = True
    order: list[str] = []
    tower = model.model.vision_tower
    tower.register_forward_pre_hook(lambda *_: order.append(f"encoder begins, {len(streams[0].pending)} pending"))
    model.model.language_model.register_forward_pre_hook(
        lambda *_: order.append(f"language model begins, {len(streams[0].pending)} pending")
    )

    with torch.no_grad():
        model(**inputs_for(processor, [1]))

    assert order == ["encoder begins, 1 pending", "language model begins, 0 pending"]


def test_a_call_that_fails_leaves_nothing_pending(streams: list[Late]) -> None:
    model, processor = attached()
    model.vpp.two_streams = True
    inputs = inputs_for(processor, [1])
    expected = model(**inputs).logits.detach()
    handle = model.model.vision_tower.register_forward_pre_hook(lambda *_: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        model(**inputs)
    handle.remove()

    assert not streams[0].pending
    assert host_state(model).slot.beside is None
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("case", ["gradients", "no axes", "text alone", "disabled", "another device"])
def test_one_stream_where_two_would_gain_nothing(case: str, streams: list[Late]) -> None:
    config = VPPConfig(global_vpp=None, local_vpp=TOY_LOCAL) if case == "no axes" else None
    model, processor = attached(config=config) if config else attached()
    model.vpp.two_streams = True
    inputs = inputs_for(processor, [0] if case == "text alone" else [1])
    if case == "another device":
        model.vpp.local_vpp.projector.to("meta")
        model.vpp.local_vpp.forward = lambda pixels, mask=None: torch.zeros(1, model.vpp.tokens_per_image, 24)

    with torch.set_grad_enabled(case == "gradients"):
        if case == "disabled":
            with vpp_disabled(model):
                model(**inputs_for(processor, [1]))
        else:
            model(**inputs)

    assert not streams


def test_copies_keep_the_choice(streams: list[Late]) -> None:
    model, processor = attached()
    model.vpp.two_streams = True
    with torch.no_grad():
        copy.deepcopy(model)(**inputs_for(processor, [1]))
    assert len(streams) == 1


def test_a_cpu_has_one_stream() -> None:
    model, processor = attached()
    inputs = inputs_for(processor, [1])
    expected = answers(model, inputs)
    model.vpp.two_streams = True
    assert all(torch.equal(one, two) for one, two in zip(expected, answers(model, inputs), strict=True))


@pytest.mark.gpu
def test_two_streams_on_a_gpu_give_the_same_answers() -> None:
    model, processor = attached()
    model.to("cuda")
    inputs = inputs_for(processor, [2, 1]).to("cuda")
    expected = answers(model, inputs)
    model.vpp.two_streams = True
    for _ in range(20):
        assert all(torch.equal(one, two) for one, two in zip(expected, answers(model, inputs), strict=True))
