"""The local prompt beside the vision encoder. Without a GPU, a second stream that is as late as can be stands in."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES, attached_family, family_inputs
from tests.late_stream import Late, late_streams
from tests.tiny import TOY_LOCAL, attached, inputs_for
from vpp_plugins import VPPConfig, vpp_disabled
from vpp_plugins.attach.attach import host_state
from vpp_plugins.attach.beside import Beside, Unfinished

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    return late_streams(monkeypatch)


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


READS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "arithmetic": lambda unfinished, zeros: unfinished + zeros,
    "on the right": lambda unfinished, zeros: zeros + unfinished,
    "twice": lambda unfinished, zeros: unfinished + unfinished - unfinished,
    "a method": lambda unfinished, zeros: unfinished.clone(),
    "a view": lambda unfinished, zeros: unfinished[..., None],
    "a list": lambda unfinished, zeros: torch.cat([zeros[:0], unfinished]),
    "by keyword": lambda unfinished, zeros: torch.where(zeros == 1, zeros, other=unfinished),
    "another's place": lambda unfinished, zeros: zeros.copy_(unfinished),
    "another's items": lambda unfinished, zeros: zeros.__setitem__(slice(None), unfinished) or zeros,
    "in place": lambda unfinished, zeros: unfinished.add_(zeros),
    "as the result": lambda unfinished, zeros: torch.add(unfinished, zeros, out=unfinished),
    "the same device": lambda unfinished, zeros: unfinished.to("cpu"),
    "numpy": lambda unfinished, zeros: torch.from_numpy(unfinished.numpy()),
    "numbers": lambda unfinished, zeros: torch.tensor(unfinished.tolist()),
    "a copy": lambda unfinished, zeros: copy.deepcopy(unfinished),
    "without history": lambda unfinished, zeros: unfinished.data,
}


@pytest.mark.parametrize("read", READS)
def test_who_reads_too_early_waits(read: str) -> None:
    stream, made = Late(), torch.randn(3, 4)
    unfinished = stream.hand_over(made.clone())
    with torch.no_grad():
        found = READS[read](unfinished, torch.zeros(3, 4))

    assert torch.equal(found.view(3, 4), made)
    assert type(found) is type(unfinished) is Tensor
    assert stream.joined_with == [1]


def test_an_address_is_not_told_before() -> None:
    stream = Late()
    stream.hand_over(torch.zeros(1)).data_ptr()
    assert stream.joined


def test_shape_dtype_and_device_need_no_numbers() -> None:
    stream = Late()
    unfinished = stream.hand_over(torch.zeros(2, 3))

    assert unfinished.shape == unfinished.size() == (2, 3)
    assert unfinished.size(1) == 3
    assert unfinished.ndim == unfinished.dim() == 2
    assert (unfinished.dtype, unfinished.device) == (torch.float32, torch.device("cpu"))
    assert type(unfinished) is Unfinished
    assert not stream.joined_with


def test_one_wait_finishes_all() -> None:
    stream = Late()
    first, second = stream.hand_over(torch.zeros(2)), stream.hand_over(torch.ones(2))
    assert torch.equal(torch.stack([first, second]), torch.tensor([[0.0, 0], [1, 1]]))
    assert stream.joined_with == [2]
    assert not vars(first)
    assert not vars(second)


def test_a_host_that_reads_before_it_encodes_waits_there(streams: list[Late]) -> None:
    """GIT adds its positions to the embeddings before it looks at the image: once it answered with no numbers."""
    model, processor = attached()
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * 1)
    inputs = inputs_for(processor, [2, 1])
    expected = answers(model, inputs)

    model.vpp.two_streams = True
    found = answers(model, inputs)

    assert streams[0].joined_with[0] == 1
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))


def test_hosts_are_left_plain_tensors(streams: list[Late]) -> None:
    model, processor = attached()
    model.vpp.two_streams = True
    seen: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(**inputs_for(processor, [1]))

    assert type(seen[0]) is Tensor
    assert not vars(seen[0])
    assert not seen[0].isnan().any()


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


@pytest.mark.parametrize(
    "case", ["gradients", "no axes", "text alone", "disabled", "another device", "a forward of its own"]
)
def test_one_stream_where_two_would_gain_nothing(case: str, streams: list[Late]) -> None:
    config = VPPConfig(global_vpp=None, local_vpp=TOY_LOCAL) if case == "no axes" else None
    model, processor = attached(config=config) if config else attached()
    model.vpp.two_streams = True
    inputs = inputs_for(processor, [0] if case == "text alone" else [1])
    if case == "another device":
        model.vpp.local_vpp.projector.to("meta")
        model.vpp.local_vpp.forward = lambda pixels, mask=None: torch.zeros(1, model.vpp.tokens_per_image, 24)
    if case == "a forward of its own":
        model.model.language_model.forward = model.model.language_model.forward

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


class Slow(Beside):
    """A second stream on a GPU that begins everything some milliseconds late."""

    @contextmanager
    def working(self, *read: Tensor) -> Iterator[None]:
        with super().working(*read):
            torch.cuda._sleep(10_000_000)
            yield


@pytest.mark.gpu
@pytest.mark.parametrize("reads_early", [False, True])
def test_two_streams_on_a_gpu_give_the_same_answers(reads_early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpp_plugins.attach.beside.Beside", Slow)
    model, processor = attached()
    model.to("cuda")
    if reads_early:
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * 1)
    inputs = inputs_for(processor, [2, 1]).to("cuda")
    expected = answers(model, inputs)
    model.vpp.two_streams = True
    for _ in range(20):
        assert all(torch.equal(one, two) for one, two in zip(expected, answers(model, inputs), strict=True))
