"""How a promise is tried: run the host or its reference, compare bit for bit, and say in one sentence what differs."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vpp_plugins.attach import NeverTokens
from vpp_plugins.errors import VPPError
from vpp_plugins.testing.fixture import Fixture, Inputs
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
    tokens: Tensor = answers if isinstance(answers, Tensor) else answers.sequences
    return tokens


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
