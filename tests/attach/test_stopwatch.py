import time

import pytest
import torch

from tests.tiny import attached, inputs_for, tiny_llava, tiny_processor
from vpp_plugins import VPPError
from vpp_plugins.attach import Stopwatch

pytestmark = pytest.mark.usefixtures("toy")


def test_a_moment_belongs_to_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    watch = Stopwatch()

    with watch.part("data"), watch.part("language model"), watch.part("prompts"):
        pass
    with watch.part("writing"):
        pass

    assert watch.seconds == {"data": 2, "language model": 2, "prompts": 1, "writing": 1}
    assert watch.sentence() == "Time: 6.0 s, of which data 33 %, language model 33 %, prompts 17 %, writing 17 %"


def test_where_nothing_is_counted_there_are_no_parts() -> None:
    """The sentence ended with "of which "."""
    watch = Stopwatch()
    assert watch.sentence() == "Time: 0.0 s"
    watch.seconds["data"] = 0.0
    assert watch.sentence() == "Time: 0.0 s"


def test_the_parts_of_a_model_are_told_apart_and_nothing_stays() -> None:
    model, processor = attached()
    inputs, watch = inputs_for(processor, [2, 1]), Stopwatch()
    expected = model(**inputs).logits
    hooks = count_hooks(model)
    began = time.perf_counter()

    with watch.parts_of(model):
        assert torch.equal(model(**inputs).logits, expected)
        model.generate(**inputs, max_new_tokens=2)

    assert {*watch.seconds} == {"language model", "vision encoder", "prompts"}
    assert all(seconds > 0 for seconds in watch.seconds.values())
    assert sum(watch.seconds.values()) < time.perf_counter() - began
    assert count_hooks(model) == hooks


def test_a_bare_host_has_no_prompts() -> None:
    host, watch = tiny_llava(), Stopwatch()

    with watch.parts_of(host), torch.no_grad():
        host(**inputs_for(tiny_processor(), [1, 1]))

    assert {*watch.seconds} == {"language model", "vision encoder"}


def test_a_call_that_fails_ends_its_parts() -> None:
    model, processor = attached()
    inputs, watch = inputs_for(processor, [2, 1]), Stopwatch()

    with watch.parts_of(model), pytest.raises(VPPError, match="vpp_pixel_values"):
        model(**(inputs | {"vpp_pixel_values": inputs["vpp_pixel_values"][:1]}))
    before = dict(watch.seconds)
    with watch.part("writing"):
        pass

    assert watch.seconds == before | {"writing": watch.seconds["writing"]}


def count_hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
