"""The promises, one function each: it returns where the promise holds, and raises Broken or Skipped otherwise.

The host or its reference runs, and what they make is compared bit for bit; one sentence says what differs.
"""

import copy
import functools
import inspect
import pickle
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins import plugins
from vpp_plugins.attach import NeverTokens, detach_vpp, load_vpp, save_vpp, vpp_disabled
from vpp_plugins.config import VPPConfig
from vpp_plugins.errors import VPPError
from vpp_plugins.processor import VPPProcessor
from vpp_plugins.prompts import TOKEN
from vpp_plugins.testing.fixture import Fixture, Inputs, ToyGenerator, sample_inputs
from vpp_plugins.testing.reference_host import ReferenceHost


class Broken(AssertionError):  # noqa: N818 - its name is what it says
    """A promise does not hold."""


class Skipped(Exception):  # noqa: N818 - it is no error
    """The bare host itself cannot do what the promise is about, or VPP and its reference refuse to in words."""


def expect(holds: bool, otherwise: str) -> None:
    """Raise Broken, with the sentence, unless it holds."""
    if not holds:
        raise Broken(otherwise)


def reference_answer(
    fixture: Fixture, reference: ReferenceHost, ask: Callable[[Any], Any], ours: Callable[[], Any]
) -> Any:
    """Return what the reference answers.

    Raises Skipped where VPP refuses too, or the bare host fails in the same way: the promise is not VPP's to keep.
    """
    try:
        return ask(reference.model)
    except VPPError:
        try:
            ours()
        except VPPError as refusal:
            raise Skipped(f"VPP refuses it: {refusal}") from refusal
        raise
    except Exception:
        try:
            ask(copy.deepcopy(fixture.bare))
        except Exception as error:
            raise Skipped(f"the bare host itself fails: {first_line(error)}") from error
        raise


def first_line(error: Exception) -> str:
    """Return the error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@torch.no_grad()
def run(fixture: Fixture, model: Any, inputs: Inputs) -> Any:
    """Run a forward."""
    return fixture.seeded(model, **inputs)


def generate(fixture: Fixture, model: Any, inputs: Inputs, never: list[int], kwargs: Mapping[str, Any]) -> Tensor:
    """Run generate, with answers in which none of the ids `never` is."""
    from transformers import LogitsProcessorList

    settings: dict[str, Any] = {}
    if never:  # Janus loses the processors on the way, and diffusion models have no such setting
        settings = {"suppress_tokens": never, "logits_processor": LogitsProcessorList([NeverTokens(never)])}
    answers = fixture.seeded(model.generate, **inputs, **settings, **kwargs)
    return answers if isinstance(answers, Tensor) else answers.sequences


def same(ours: Tensor, expected: Tensor, inputs: Inputs, what: str) -> None:
    """Compare logits bit for bit, where the inputs are no padding."""
    expect(ours.shape == expected.shape, f"{what} are {list(ours.shape)} instead of {list(expected.shape)}")
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape == ours.shape[:2]:
        ours, expected = ours[mask.bool()], expected[mask.bool()]
    differ = (ours != expected) & ~(ours.isnan() & expected.isnan())
    if differ.any():
        most = (ours - expected).abs().nan_to_num(torch.inf).max()
        raise Broken(f"{what} differ at {int(differ.sum())} of {differ.numel()} places, by up to {most:.3g}")


def fingerprint(model: Any) -> dict[str, Any]:
    """Return everything by which a host could differ from what it was: class, weights, attributes, hooks, settings."""
    modules = {
        name: {
            "class": type(module),
            "attributes": sorted(module.__dict__),
            "plain values": {k: v for k, v in module.__dict__.items() if isinstance(v, bool | int | float | str)},
            "hooks": _hooks(module),
        }
        for name, module in model.named_modules()
    }
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    configs = (model.config.to_dict(), model.generation_config.to_dict())
    return {"modules": modules, "weights": weights, "trainable": trainable, "configs": configs}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise AssertionError where two fingerprints differ, naming what does; weights are compared bit for bit."""
    for part in ("modules", "trainable"):
        names = sorted(found[part].keys() ^ expected[part].keys())
        assert not names, f"{part} that only one of the two has: {', '.join(names[:3])}"
        for name, value in expected[part].items():
            assert found[part][name] == value, f"{part} of '{name}': {found[part][name]} instead of {value}"
    assert found["configs"] == expected["configs"], "the configurations differ"
    assert list(found["weights"]) == list(expected["weights"]), "the state dicts have other names"
    for name, weight in expected["weights"].items():
        assert torch.equal(found["weights"][name], weight), f"the weight '{name}' differs"


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    """Name the hooks of every kind: transformers makes a new closure of one name wherever it records outputs."""
    kinds = {kind: hooks for kind, hooks in module.__dict__.items() if "hooks" in kind and isinstance(hooks, dict)}
    return {kind: [h.__qualname__ if callable(h) else h for h in hooks.values()] for kind, hooks in kinds.items()}


NEW_TOKENS = 4
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam search": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "no cache": {"do_sample": False, "use_cache": False},
}


def description(fixture: Fixture) -> None:
    """Everything that the Backbone says of the host is so."""
    backbone, host = fixture.backbone, copy.deepcopy(fixture.bare)
    embedded = host.get_input_embeddings()(fixture.first()["input_ids"][:, :1].clamp(max=0)).shape[-1]
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
        any(fixture.first().get(name) is not None for name in backbone.image_arguments),
        f"none of image_arguments {list(backbone.image_arguments)} is among the inputs {sorted(fixture.first())}",
    )
    expect(min(backbone.never_ids, default=0) >= 0, f"never_ids holds {min(backbone.never_ids, default=0)}")


def axes_on_the_pixels(fixture: Fixture) -> None:
    """The vision encoders named are those that get the pixels, and the layout changes values only."""
    if fixture.attached.vpp.global_vpp is None:
        raise Skipped("the adapter names no vision encoder")
    for name, inputs in fixture.batches.items():
        reference = fixture.reference(inputs)
        run(fixture, reference.model, fixture.host_inputs(inputs))
        called = {path for path, _, _ in reference.laid}
        idle = [path for path in fixture.backbone.vision_encoders if path not in called]
        expect(not idle, f"the vision encoders {idle} were not called with the batch {name}")
        for _, before, after in reference.laid:
            expect(
                (before.shape, before.dtype) == (after.shape, after.dtype),
                f"the layout made {after.dtype} {list(after.shape)} of {before.dtype} {list(before.shape)}",
            )
            expect(not torch.equal(before, after), "the layout left the pixels as they were")


def forward(fixture: Fixture) -> None:
    """Logits are bit for bit those of the unpatched reference."""
    for name, inputs in fixture.batches.items():
        theirs, reference = fixture.host_inputs(inputs), fixture.reference(inputs)
        expected = run(fixture, reference.model, theirs).logits
        same(run(fixture, fixture.attached, inputs).logits, expected, theirs, f"logits of the batch {name}")


def forward_with_labels(fixture: Fixture) -> None:
    """The loss is bit for bit the unpatched reference's; the placeholders carry no label."""
    if "labels" not in inspect.signature(type(fixture.bare).forward).parameters:
        raise Skipped("the host's forward takes no labels")
    for name, inputs in fixture.batches.items():
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == fixture.token_id, -100)
        theirs, reference = fixture.host_inputs(inputs), fixture.reference(inputs)
        ask = functools.partial(run, fixture, inputs=theirs | {"labels": labels})
        ask_ours = functools.partial(run, fixture, fixture.attached, {**inputs, "labels": labels})
        expected = reference_answer(fixture, reference, ask, ask_ours)
        ours = ask_ours()
        same(ours.logits, expected.logits, theirs, f"logits of the batch {name}")
        expect(torch.equal(ours.loss, expected.loss), f"the loss is {ours.loss} instead of {expected.loss} ({name})")


def generates(decoder: str) -> Callable[[Fixture], None]:
    """Return the promise that, decoded so, answers are those of the unpatched reference, token for token."""

    def promise(fixture: Fixture) -> None:
        for name, inputs in fixture.batches.items():
            if name == "padded on the right":
                continue
            theirs, reference = fixture.host_inputs(inputs), fixture.reference(inputs)
            # the spare ids mean something to the reference alone; what VPP itself never answers is added to them
            placeholder = [fixture.token_id] if fixture.token_id >= 0 else []
            never = [*fixture.spare.tolist(), *fixture.backbone.never_ids, *placeholder]
            kwargs = {"max_new_tokens": NEW_TOKENS, **DECODERS[decoder]}
            ask = functools.partial(generate, fixture, inputs=theirs, never=never, kwargs=kwargs)
            ask_ours = functools.partial(
                generate, fixture, fixture.attached, inputs=inputs, never=fixture.spare.tolist(), kwargs=kwargs
            )
            expected = reference_answer(fixture, reference, ask, ask_ours)
            ours = ask_ours()
            known = torch.isin(expected, fixture.spare.to(expected.device))
            expected = expected.masked_fill(known, fixture.token_id)
            expect(torch.equal(ours, expected), f"the answers are {_tail(ours)} instead of {_tail(expected)}")
            if fixture.attached.vpp.global_vpp is not None:
                expect(bool(reference.laid), "generate calls none of the vision encoders that the adapter names")

    return promise


def gradients(fixture: Fixture) -> None:
    """A backward reaches every trainable parameter of the prompts, and P only under its band."""
    model, inputs = copy.deepcopy(fixture.attached), fixture.first()
    model.vpp.detector_overlay = "off"  # P must learn from the host's pixels, not only from the detector's
    with torch.enable_grad():
        fixture.seeded(model, **inputs).logits.float().square().mean().backward()
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


def disabled(fixture: Fixture) -> None:
    """Within `vpp_disabled` the model is the bare host, bit for bit, and the processor makes host inputs only."""
    inputs = fixture.first()
    theirs, enabled = fixture.host_inputs(inputs), run(fixture, fixture.attached, inputs).logits
    with vpp_disabled(fixture.attached):
        ours = run(fixture, fixture.attached, theirs).logits
    same(ours, run(fixture, copy.deepcopy(fixture.bare), theirs).logits, theirs, "logits of the disabled model")
    same(run(fixture, fixture.attached, inputs).logits, enabled, theirs, "logits after the block")


def detached(fixture: Fixture) -> None:
    """`detach_vpp` leaves class, weights, hooks and attributes as they were."""
    model, theirs = copy.deepcopy(fixture.bare), fixture.host_inputs(fixture.first())
    expected = run(fixture, model, theirs).logits  # some hosts keep what their first forward computed
    before = fingerprint(model)
    fixture.attach(model, fixture.attached.vpp.config)
    run(fixture, model, fixture.first())
    detach_vpp(model)
    assert_same(fingerprint(model), before)
    same(run(fixture, model, theirs).logits, expected, theirs, "logits after detach_vpp")


def copies(fixture: Fixture) -> None:
    """An attached model deep-copies and pickles."""
    theirs = fixture.host_inputs(fixture.first())
    expected = run(fixture, fixture.attached, fixture.first()).logits
    copied = run(fixture, copy.deepcopy(fixture.attached), fixture.first()).logits
    same(copied, expected, theirs, "logits of a deep copy")
    try:
        pickle.dumps(fixture.bare)
    except Exception as error:
        raise Skipped(f"deep copies hold; the bare host does not pickle: {first_line(error)}") from error
    pickled = pickle.loads(pickle.dumps(fixture.fresh()))
    same(run(fixture, pickled, fixture.first()).logits, expected, theirs, "logits of a pickled copy")


def saved_and_loaded(fixture: Fixture) -> None:
    """`save_vpp`, then `attach_vpp(host, folder)` or `load_vpp`, gives the same model."""
    theirs = fixture.host_inputs(fixture.first())
    expected = run(fixture, fixture.attached, fixture.first()).logits
    with tempfile.TemporaryDirectory() as folder:
        save_vpp(fixture.attached, folder)
        built = fixture.attach(copy.deepcopy(fixture.bare), folder)
        settings = fixture.attached.vpp.config
        other = VPPConfig(global_vpp=settings.global_vpp, local_vpp=settings.local_vpp, seed=settings.seed + 1)
        loaded = fixture.attach(copy.deepcopy(fixture.bare), other)
        load_vpp(loaded, folder)
    for name, model in (("attach_vpp(host, folder)", built), ("load_vpp(model, folder)", loaded)):
        same(run(fixture, model, fixture.first()).logits, expected, theirs, f"logits after {name}")


def processor(fixture: Fixture) -> None:
    """VPPProcessor adds placeholders and images to the host's own inputs, and nothing else."""
    if fixture.processor is None:
        raise Skipped("ready inputs were given instead of a processor")
    wrapped = VPPProcessor(fixture.processor, fixture.attached)
    for name, inputs in fixture.batches.items():
        with vpp_disabled(fixture.attached):
            plain = sample_inputs(wrapped, fixture.backbone, name.rsplit(" ", 1)[-1])
        expect(not any(key.startswith("vpp_") for key in plain), f"a disabled VPPProcessor made {sorted(plain)}")
        ours, theirs = _texts(inputs), _texts(plain)
        rest = [[token for token in text if token != fixture.token_id] for text in ours]
        expect(rest == theirs, f"without {TOKEN} the ids are {rest} instead of the host's {theirs}")


def _tail(answers: Tensor) -> list[list[int]]:
    return answers[:, -NEW_TOKENS:].tolist()


def _texts(inputs: Inputs) -> list[list[int]]:
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    return [row[keep].tolist() for row, keep in zip(inputs["input_ids"], mask, strict=True)]
