"""What a host looks like from every side, to see that it is again what it was."""

from typing import Any

import torch
from torch import nn


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
