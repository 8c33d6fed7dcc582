"""VPP under torch.compile: the same answers, and hardly more graphs than the host alone."""

import subprocess
import sys

import pytest


class TestCompile:
    @pytest.mark.slow  # test_compiled_prompt.py compiles the prompts in every run
    @pytest.mark.timeout(600)  # twelve seconds of work, on a machine that others may be using too
    def test_torch_compile(self) -> None:
        """In a process of its own, because the checks of signatures that our tests turn on cannot be traced."""
        finished = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)

        assert finished.returncode == 0, finished.stderr[-3000:]

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_hardly_more_graphs_than_the_host_alone(self) -> None:
        finished = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=False)

        assert finished.returncode == 0, finished.stderr[-3000:]
        counts = {name: (int(bare), int(ours)) for name, bare, ours in map(str.split, finished.stdout.splitlines())}
        assert list(counts) == ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"]
        assert all(ours <= bare + 2 for bare, ours in counts.values()), counts


COMPILED = """
import warnings

warnings.simplefilter("error")
import torch
from transformers import CompileConfig

from tests.tiny import ToyPlugin, attached, inputs_for, tiny_llava, tiny_processor, toy_config
from vpp_plugins import VPPProcessor, attach_vpp, detach_vpp, is_attached
from vpp_plugins.attach.attach import unwrap
from vpp_plugins.plugins.registry import manager

manager().register(ToyPlugin(), "toy")
torch.set_num_threads(1)
reference, processor = attached()
inputs = inputs_for(processor, [2, 1])
expected = reference.generate(**inputs, max_new_tokens=3)
with torch.no_grad():
    logits = reference(**inputs).logits

model = attach_vpp(tiny_llava(), toy_config())
compiled = torch.compile(model, backend="eager")
VPPProcessor(tiny_processor(), compiled)
model.vpp.trained = True
with torch.no_grad():
    for _ in range(2):
        assert torch.equal(compiled(**inputs).logits, logits)
        assert model._vpp_state.slot.placed is False
assert torch.equal(compiled.generate(**inputs, max_new_tokens=3), expected)

# what transformers does by itself on a GPU: decoding compiled as one graph, which VPP must not break
config = CompileConfig(fullgraph=True, backend="eager", mode=None)
model._valid_auto_compile_criteria = lambda *args, **kwargs: True
found = model.generate(**inputs, max_new_tokens=3, cache_implementation="static", compile_config=config)
assert torch.equal(found, expected)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"]

assert detach_vpp(compiled) is compiled and not is_attached(model)
assert attach_vpp(compiled, toy_config()) is compiled
assert is_attached(compiled) and unwrap(compiled) is model
"""


COUNTED = """
import torch
import torch._dynamo

from tests.families import FAMILIES, attached_family, family_inputs
from tests.tiny import ToyPlugin
from vpp_plugins import vpp_disabled
from vpp_plugins.plugins.registry import manager

manager().register(ToyPlugin(), "toy")
torch.set_num_threads(1)


def breaks(model, inputs):
    torch._dynamo.reset()
    with torch.no_grad():
        return torch._dynamo.explain(model)(**inputs).graph_break_count


for name in ("llava", "qwen2_5_vl", "qwen3_vl", "internvl"):
    model, processor = attached_family(name)
    with vpp_disabled(model):
        plain = family_inputs(processor, [2, 1])
    print(name, breaks(FAMILIES[name].model(), plain), breaks(model, family_inputs(processor, [2, 1])))
"""
