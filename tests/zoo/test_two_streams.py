"""Two streams on every architecture that takes VPP: whatever a host reads first, its answers are the same."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.late_stream import late_streams
from tests.zoo.hosts import ARCHITECTURES, PLACEHOLDER, inputs_of, tiny_host
from vpp_plugins.testing import toy_generator
from vpp_plugins.testing.coverage import recorded_coverage
from vpp_plugins.testing.fixture import Bench, build

pytestmark = [
    pytest.mark.slow,
    # what hosts do themselves: DiffusionGemma, and Mllama in transformers 5.17
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.hidden_state. is deprecated:FutureWarning"),
]

COVERED = [kind for kind in sorted(ARCHITECTURES) if recorded_coverage()[kind].local_prompt == "exact"]


@pytest.mark.parametrize("model_type", COVERED)
def test_two_streams_give_the_answers_of_one(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = late_streams(monkeypatch)
    host = tiny_host(model_type)
    with toy_generator():
        bench = build(host, None, inputs_of(model_type, host), PLACEHOLDER, None, None)
    expected = answers(bench)
    assert not streams

    bench.attached.vpp.two_streams = True
    found = answers(bench)

    assert len(streams) == (2 if bench.backbone.vision_encoders else 0)  # a forward, and a generate
    assert all(any(stream.joined_with) for stream in streams)  # and somebody waited for something
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))


@torch.no_grad()
def answers(bench: Bench) -> tuple[Tensor, Tensor]:
    """Return logits, and what the host generates."""
    model, inputs = bench.attached, copy.deepcopy(bench.first())  # BLIP's generate writes to the ids that it is given
    logits = bench.seeded(model, **inputs).logits
    said: Any = bench.seeded(model.generate, **inputs, max_new_tokens=3, do_sample=False)
    return logits, said if isinstance(said, Tensor) else said.sequences
