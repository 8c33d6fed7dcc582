"""`model.vpp.local_vpp.compile(...)`: torch's own way to compile one module, and with it to CUDA graphs."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import attached, inputs_for, tiny_llava
from vpp_plugins import attach_vpp, detach_vpp


def run(script: str) -> None:
    """Run a script in a process of its own: the checks of signatures that our tests turn on cannot be traced."""
    finished = subprocess.run([sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]


PRELUDE = """
import dataclasses
import warnings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from tests.tiny import TEXTS, ToyPlugin, attached, inputs_for, image, tiny_config, toy_config
from vpp_plugins.plugins.registry import manager

manager().register(ToyPlugin(), "toy")
torch.set_num_threads(1)


def off_by(found, expected):
    "The largest error, in units of the largest number."
    return float((found - expected).abs().max() / expected.abs().max())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mask_padding", [True, False])
def test_it_is_one_graph_on_one_device_with_the_same_numbers(mask_padding: bool) -> None:
    """Images of any shape, padding masked or not: one graph for a single one, and one for any number of them."""
    run(
        f"mask_padding = {mask_padding}"
        + """
config = tiny_config()
config = dataclasses.replace(config, local_vpp=dataclasses.replace(config.local_vpp, mask_padding=mask_padding))
(plain, _), (model, processor) = attached(config=config), attached(config=config)
model.vpp.local_vpp.compile(backend="eager", fullgraph=True)
for sizes in ([(40, 24)], [(24, 40)], [(32, 32), (60, 20)], [(64, 64), (40, 24), (20, 60)]):
    images = [[image(seed, size)] for seed, size in enumerate(sizes)]
    inputs = processor(images=images, text=[TEXTS[1]] * len(sizes), return_tensors="pt", padding=True)
    with torch.no_grad():
        assert off_by(model(**inputs).logits, plain(**inputs).logits) < 1e-4
    wanted, found = (one.generate(**inputs, max_new_tokens=3, do_sample=False) for one in (plain, model))
    assert torch.equal(wanted, found)
assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"], counters

# one tensor on the CPU among those on a GPU, and torch takes no CUDA graph, with a line in its log alone
devices = set()


def looking(graph, inputs):
    values = [node.meta.get("example_value") for node in graph.graph.nodes]
    devices.update(value.device.type for value in values if isinstance(value, torch.Tensor))
    return graph


torch._dynamo.reset()
local = model.vpp.local_vpp.to("meta")
local.compile(backend=looking)
pixels = torch.zeros(2, 3, 64, 64, device="meta")
with torch.no_grad():
    local(pixels)
    local(pixels, torch.ones(2, 64, 64, dtype=torch.bool, device="meta"))
assert devices == {"meta"}, devices
"""
    )


@pytest.mark.slow
def test_weights_are_never_stale_and_results_never_overwritten() -> None:
    """A CUDA graph writes its results to the same memory each time. Without a GPU, a backend that spoils them does."""
    run("""
warnings.filterwarnings("ignore", "The .grad attribute")  # which torch hides unless warnings are errors
(plain, processor), (model, _) = attached(), attached()
inputs = inputs_for(processor, [2, 1])
model.vpp.local_vpp.compile(backend="aot_eager")
before = []


def check(changed):
    with torch.no_grad():
        expected, found = (one.vpp(inputs["vpp_pixel_values"]).features for one in (plain, model))
    assert found.dtype == expected.dtype and off_by(found.float(), expected.float()) < 1e-4, changed
    assert not any(torch.equal(found, other) for other in before), f"{changed} changed nothing"
    before.append(found)


check("nothing")
for one in (plain, model):
    optimizer = torch.optim.SGD(one.vpp.parameters(), lr=0.1)
    one(**inputs).logits.square().mean().backward()
    optimizer.step()
check("a training step")
for assign in (False, True):
    for one in (plain, model):
        one.vpp.load_state_dict({name: 0.9 * value for name, value in one.vpp.state_dict().items()}, assign=assign)
    check("load_state_dict")
for one in (plain, model):
    for parameter in one.vpp.parameters():
        parameter.data.mul_(1.1)
check("a write through .data")
for one in (plain, model):
    one.to(torch.float64)
check("another dtype")

results = []


def graphed(graph, inputs):
    def replay(*inputs):
        found = graph(*inputs)
        for old in results:
            old.fill_(torch.nan)
        results[:] = found
        return found

    return replay


(plain, processor), (model, _) = attached(), attached()
model.vpp.local_vpp.compile(backend=graphed)
calls = [inputs_for(processor, images) for images in ([1], [2, 1], [0, 2])]
with torch.no_grad():
    for kept, expected in [
        [[one.vpp(call["vpp_pixel_values"]).features for call in calls] for one in (model, plain)],
        [[one(**call).logits for call in calls] for one in (model, plain)],
        [[one.generate(**call, max_new_tokens=3, num_beams=2) for call in calls] for one in (model, plain)],
    ]:
        assert all(torch.equal(one, two) for one, two in zip(kept, expected, strict=True))
assert results
""")


@pytest.mark.slow
def test_the_whole_host_may_be_compiled_around_it() -> None:
    run("""
(plain, processor), (model, _) = attached(), attached()
inputs = inputs_for(processor, [2, 1])
model.vpp.local_vpp.compile(backend="eager")
compiled = torch.compile(model, backend="eager")
with torch.no_grad():
    assert off_by(compiled(**inputs).logits, plain(**inputs).logits) < 1e-4
""")


@pytest.mark.usefixtures("toy")
def test_files_and_copies_are_an_ordinary_model_s(tmp_path: Path) -> None:
    """torch leaves the compiled call out of copies and pickles; saved tensors keep their names."""
    plain, processor = attached()
    model, _ = attached()
    model.vpp.local_vpp.compile(backend="eager")

    assert list(model.state_dict()) == list(plain.state_dict())
    model.save_pretrained(tmp_path)
    loaded = attach_vpp(tiny_llava(), tmp_path)
    loaded.vpp.bind_token(model.vpp.token_id)
    inputs = inputs_for(processor, [2, 1])
    with torch.no_grad():
        expected = plain(**inputs).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            assert other.vpp.local_vpp._compiled_call_impl is None
            assert torch.equal(other(**inputs).logits, expected)
    assert model.vpp.local_vpp._compiled_call_impl is not None
    assert not any(name.startswith("vpp") for name in detach_vpp(model).state_dict())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_most_detectors_of_transformers_are_one_graph_too() -> None:
    """RT-DETRv2 and D-FINE are not: they read numbers off tensors."""
    run("""
from tests.prompts.generators.test_hf_detector import DETECTORS, QUERIES, tiny
from vpp_plugins.prompts import LocalVPP

warnings.simplefilter("default")  # the detectors' own
for kind in DETECTORS.keys() - {"rt_detr_v2", "d_fine"}:
    torch._dynamo.reset()
    detector = tiny(kind)
    local = LocalVPP(detector, num_queries=QUERIES, query_width=detector.width, hidden_size=24).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = local(pixels)
        local.compile(backend="eager", fullgraph=True)
        assert off_by(local(pixels), expected) < 1e-4, kind
""")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_inductor_gives_the_same_numbers() -> None:
    run("""
(plain, processor), (model, _) = attached(config=tiny_config()), attached(config=tiny_config())
warnings.simplefilter("default")  # the C++ compiler's are its own
model.vpp.local_vpp.compile(mode="reduce-overhead", fullgraph=True)
for images in ([1], [2, 1]):
    inputs = inputs_for(processor, images)
    with torch.no_grad():
        assert off_by(model(**inputs).logits, plain(**inputs).logits) < 1e-4
""")


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_cuda_graphs_give_the_same_numbers() -> None:
    """Results are kept and compared at the end: memory that a later replay has written to shows."""
    run("""
torch.backends.cudnn.allow_tf32 = False
(plain, processor), (model, _) = attached(config=tiny_config()), attached(config=tiny_config())
for one in (plain, model):
    one.to("cuda")
warnings.simplefilter("default")
model.vpp.local_vpp.compile(mode="reduce-overhead", fullgraph=True)
calls = [inputs_for(processor, images).to("cuda") for images in ([1], [2], [1, 2])]


@torch.no_grad()
def check():
    kept, expected = (
        [(one.vpp(call["vpp_pixel_values"]).features, one(**call).logits) for _ in range(5) for call in calls]
        for one in (model, plain)
    )
    assert all(off_by(*pair) < 1e-4 for found, wanted in zip(kept, expected) for pair in zip(found, wanted))


check()
for one in (plain, model):
    one.vpp.load_state_dict({name: 0.9 * value for name, value in one.vpp.state_dict().items()})
check()
for one in (plain, model):
    one.vpp.load_state_dict({name: 0.9 * value for name, value in one.vpp.state_dict().items()}, assign=True)
check()
assert not counters["inductor"]["cudagraph_skips"], counters["inductor"]
""")
