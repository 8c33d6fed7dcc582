"""The promises, one function each: it returns where the promise holds, and raises Broken or Skipped otherwise."""

import copy
import functools
import pickle
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vpp_plugins import plugins
from vpp_plugins.attach import detach_vpp, load_vpp, save_vpp, vpp_disabled
from vpp_plugins.config import VPPConfig
from vpp_plugins.processor import VPPProcessor
from vpp_plugins.prompts import TOKEN
from vpp_plugins.testing.fingerprint import assert_same, fingerprint
from vpp_plugins.testing.fixture import Bench, Inputs, sample_inputs
from vpp_plugins.testing.outcome import Skipped, asked, expect, first_line, generate, run, same
from vpp_plugins.testing.toy import ToyGenerator

NEW_TOKENS = 4
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam search": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "no cache": {"do_sample": False, "use_cache": False},
}


def description(bench: Bench) -> None:
    """Everything that the Backbone says of the host is so."""
    backbone, host = bench.backbone, copy.deepcopy(bench.bare)
    embedded = host.get_input_embeddings()(bench.first()["input_ids"][:, :1].clamp(max=0)).shape[-1]
    expect(embedded == backbone.hidden_size, f"hidden_size is {backbone.hidden_size}, but tokens embed to {embedded}")
    paths = dict(host.named_modules())
    for path in backbone.projectors:
        expect(path in paths, f"projectors names '{path}', which the host does not have")
    codec = plugins.box_codec(backbone.box_format)
    expect(
        codec.frame == backbone.frame,
        f"frame is '{backbone.frame}', but the format '{codec.family}' measures boxes on the '{codec.frame}'",
    )
    axes = backbone.defaults.global_vpp
    expect(
        axes is None or codec.unit not in ("0-1", "0-1000") or codec.unit == axes.unit,
        f"the default axes count in another unit than boxes of the format '{codec.family}', which is {codec.unit}",
    )
    expect(
        any(bench.first().get(name) is not None for name in backbone.image_arguments),
        f"none of image_arguments {list(backbone.image_arguments)} is among the inputs {sorted(bench.first())}",
    )
    expect(min(backbone.never_ids, default=0) >= 0, f"never_ids holds {min(backbone.never_ids, default=0)}")


def axes_on_the_pixels(bench: Bench) -> None:
    """The vision encoders named are those that get the pixels, and the layout changes values only."""
    if bench.attached.vpp.global_vpp is None:
        raise Skipped("the adapter names no vision encoder")
    for name, inputs in bench.batches.items():
        twin = bench.twin(inputs)
        run(bench, twin.model, bench.host_inputs(inputs))
        idle = [path for path in bench.backbone.vision_encoders if path not in {path for path, _, _ in twin.laid}]
        expect(not idle, f"the vision encoders {idle} were not called with the batch {name}")
        for _, before, after in twin.laid:
            expect(
                (before.shape, before.dtype) == (after.shape, after.dtype),
                f"the layout made {after.dtype} {list(after.shape)} of {before.dtype} {list(before.shape)}",
            )
            expect(not torch.equal(before, after), "the layout left the pixels as they were")


def forward(bench: Bench) -> None:
    """Logits are bit for bit those of the unpatched twin."""
    for name, inputs in bench.batches.items():
        theirs, twin = bench.host_inputs(inputs), bench.twin(inputs)
        expected = run(bench, twin.model, theirs).logits
        same(run(bench, bench.attached, inputs).logits, expected, theirs, f"logits of the batch {name}")


def forward_with_labels(bench: Bench) -> None:
    """The loss is bit for bit the unpatched twin's; the placeholders carry no label."""
    if not bench.takes("labels"):
        raise Skipped("the host's forward takes no labels")
    for name, inputs in bench.batches.items():
        labels = _labels(bench, inputs)
        theirs, twin = bench.host_inputs(inputs), bench.twin(inputs)
        run_ours = functools.partial(run, bench, bench.attached, {**inputs, "labels": labels})
        expected = asked(bench, twin, functools.partial(run, bench, inputs=theirs | {"labels": labels}), run_ours)
        ours = run_ours()
        same(ours.logits, expected.logits, theirs, f"logits of the batch {name}")
        expect(torch.equal(ours.loss, expected.loss), f"the loss is {ours.loss} instead of {expected.loss} ({name})")


def generates(decoder: str) -> Callable[[Bench], None]:
    """Return the promise that answers are those of the unpatched twin, token for token, with this way of decoding."""

    def promise(bench: Bench) -> None:
        for name, inputs in bench.batches.items():
            if name == "padded on the right":
                continue
            theirs, twin = bench.host_inputs(inputs), bench.twin(inputs)
            # the spare ids mean something to the twin alone; what VPP itself never answers is added to them
            placeholder = [bench.token_id] if bench.token_id >= 0 else []
            never = [*bench.spare.tolist(), *bench.backbone.never_ids, *placeholder]
            kwargs = {"max_new_tokens": NEW_TOKENS, **DECODERS[decoder]}
            ask = functools.partial(generate, bench, inputs=theirs, never=never, kwargs=kwargs)
            ask_ours = functools.partial(
                generate, bench, bench.attached, inputs=inputs, never=bench.spare.tolist(), kwargs=kwargs
            )
            expected = asked(bench, twin, ask, ask_ours)
            ours = ask_ours()
            known = torch.isin(expected, bench.spare.to(expected.device))
            expected = expected.masked_fill(known, bench.token_id)
            expect(torch.equal(ours, expected), f"the answers are {_tail(ours)} instead of {_tail(expected)}")
            if bench.attached.vpp.global_vpp is not None:
                expect(bool(twin.laid), "generate calls none of the vision encoders that the adapter names")

    return promise


def gradients(bench: Bench) -> None:
    """A backward reaches every trainable parameter of the prompts, and P only under its band."""
    model, inputs = copy.deepcopy(bench.attached), bench.first()
    model.vpp.detector_overlay = "off"  # P must learn from the host's pixels, not only from the detector's
    with torch.enable_grad():
        bench.seeded(model, **inputs).logits.float().square().mean().backward()
    vpp = model.vpp
    toy = vpp.local_vpp is None or isinstance(vpp.local_vpp.generator, ToyGenerator)
    for name, parameter in vpp.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        finite = gradient is not None and bool(gradient.isfinite().all())
        expect(finite, f"no finite gradient reaches '{name}'")
        # a generator of another kind may have parameters that count for nothing at its start, as DETR has
        strict = toy or not name.startswith("local_prompt.generator.")
        expect(not strict or bool(gradient.any()), f"the gradient of '{name}' is zero")
    axes = vpp.global_vpp
    if axes is not None and axes.style != "padding":
        outside = (axes.mask == 0).expand_as(axes.prompt)
        expect(not bool(axes.prompt.grad[outside].any()), "P has a gradient outside its band")


def disabled(bench: Bench) -> None:
    """Within `vpp_disabled` the model is the bare host, bit for bit, and the processor makes host inputs only."""
    inputs = bench.first()
    theirs, enabled = bench.host_inputs(inputs), run(bench, bench.attached, inputs).logits
    with vpp_disabled(bench.attached):
        ours = run(bench, bench.attached, theirs).logits
    same(ours, run(bench, copy.deepcopy(bench.bare), theirs).logits, theirs, "logits of the disabled model")
    again = run(bench, bench.attached, inputs).logits
    same(again, enabled, theirs, "logits after the block")


def detached(bench: Bench) -> None:
    """`detach_vpp` leaves class, weights, hooks and attributes as they were."""
    model, theirs = copy.deepcopy(bench.bare), bench.host_inputs(bench.first())
    expected = run(bench, model, theirs).logits  # some hosts keep what their first forward computed
    before = fingerprint(model)
    bench.attach(model, bench.attached.vpp.config)
    run(bench, model, bench.first())
    detach_vpp(model)
    assert_same(fingerprint(model), before)
    same(run(bench, model, theirs).logits, expected, theirs, "logits after detach_vpp")


def copies(bench: Bench) -> None:
    """An attached model deep-copies and pickles."""
    theirs = bench.host_inputs(bench.first())
    expected = run(bench, bench.attached, bench.first()).logits
    copied = run(bench, copy.deepcopy(bench.attached), bench.first()).logits
    same(copied, expected, theirs, "logits of a deep copy")
    try:
        pickle.dumps(bench.bare)
    except Exception as error:
        raise Skipped(f"deep copies hold; the bare host does not pickle: {first_line(error)}") from error
    pickled = pickle.loads(pickle.dumps(bench.fresh()))
    same(run(bench, pickled, bench.first()).logits, expected, theirs, "logits of a pickled copy")


def saved_and_loaded(bench: Bench) -> None:
    """`save_vpp`, then `attach_vpp(host, folder)` or `load_vpp`, gives the same model."""
    theirs = bench.host_inputs(bench.first())
    expected = run(bench, bench.attached, bench.first()).logits
    with tempfile.TemporaryDirectory() as folder:
        save_vpp(bench.attached, folder)
        built = bench.attach(copy.deepcopy(bench.bare), folder)
        settings = bench.attached.vpp.config
        other = VPPConfig(global_vpp=settings.global_vpp, local_vpp=settings.local_vpp, seed=settings.seed + 1)
        loaded = bench.attach(copy.deepcopy(bench.bare), other)
        load_vpp(loaded, folder)
    for name, model in (("attach_vpp(host, folder)", built), ("load_vpp(model, folder)", loaded)):
        same(run(bench, model, bench.first()).logits, expected, theirs, f"logits after {name}")


def processor(bench: Bench) -> None:
    """VPPProcessor adds placeholders and images to the host's own inputs, and nothing else."""
    if bench.processor is None:
        raise Skipped("ready inputs were given instead of a processor")
    wrapped = VPPProcessor(bench.processor, bench.attached)
    for name, inputs in bench.batches.items():
        with vpp_disabled(bench.attached):
            plain = sample_inputs(wrapped, bench.backbone, name.rsplit(" ", 1)[-1])
        expect(not any(key.startswith("vpp_") for key in plain), f"a disabled VPPProcessor made {sorted(plain)}")
        ours, theirs = _texts(inputs), _texts(plain)
        rest = [[token for token in text if token != bench.token_id] for text in ours]
        expect(rest == theirs, f"without {TOKEN} the ids are {rest} instead of the host's {theirs}")


def _labels(bench: Bench, inputs: Inputs) -> Tensor:
    ids: Tensor = inputs["input_ids"]
    return ids.masked_fill(ids == bench.token_id, -100)


def _tail(answers: Tensor) -> list[list[int]]:
    tail: list[list[int]] = answers[:, -NEW_TOKENS:].tolist()
    return tail


def _texts(inputs: Inputs) -> list[list[int]]:
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    return [row[keep].tolist() for row, keep in zip(inputs["input_ids"], mask, strict=True)]
