"""What attaching costs a forward on the host's side, beyond the prompts' own work and the extra tokens.

A row is the median over the rounds of a difference within the round. The host is tiny, so that it does not drown the
differences.
"""

from typing import Any

import torch

from benchmarks.hosts import attach, build_host, plain_inputs, prompted_inputs
from benchmarks.rows import Row, interleaved, median_row
from vpp_plugins import vpp_disabled

ROUNDS = 200
TEXT_TOKENS, QUERIES = 32, 16


def measure(rounds: int = ROUNDS) -> list[Row]:
    """Return what a disabled VPP adds to a forward, what an attached one adds, and what it adds to a decoding step."""
    host, attached, disabled = build_host(64, 128, 2, 4), *(attach(build_host(64, 128, 2, 4), QUERIES) for _ in "ab")
    plain, longer = plain_inputs(TEXT_TOKENS), plain_inputs(TEXT_TOKENS, QUERIES)
    prompted = prompted_inputs(TEXT_TOKENS, QUERIES)
    host_step, attached_step = DecodingStep(host, batch=1), DecodingStep(attached, batch=1)
    times = timed_calls(
        host, attached, disabled, plain, longer, prompted, host_step, attached_step, rounds=rounds, warm_up=10
    )
    columns = zip(times["attached"], times["host, more tokens"], times["vpp alone"], strict=True)
    added = {
        "host time added to a forward, VPP disabled": (_less(times["disabled"], times["host"]), 0.3),
        "host time added to a forward, VPP attached": ([a - b - c for a, b, c in columns], 1.0),
        "host time added to a decoding step, VPP attached": (_less(times["attached step"], times["host step"]), 1.0),
    }
    return [
        median_row(name, [1000 * seconds for seconds in differences], unit="ms", bar=bar)
        for name, (differences, bar) in added.items()
    ]


def timed_calls(
    host: Any,
    attached: Any,
    disabled: Any,
    plain: dict[str, Any],
    longer: dict[str, Any],
    prompted: dict[str, Any],
    host_step: "DecodingStep",
    attached_step: "DecodingStep",
    **settings: Any,
) -> dict[str, list[float]]:
    """Time a forward and a decoding step of a host, and of two that VPP is attached to, interleaved.

    `longer` are the bare host's inputs with as many tokens as `prompted` has; `settings` go to `interleaved`.
    """
    calls = {
        "host": lambda: host(**plain),
        "disabled": lambda: disabled(**plain),
        "host, more tokens": lambda: host(**longer),
        "attached": lambda: attached(**prompted),
        "vpp alone": lambda: attached.vpp(prompted["vpp_pixel_values"]),
        "host step": host_step,
        "attached step": attached_step,
    }
    with vpp_disabled(disabled):
        return interleaved(calls, **settings)


class DecodingStep:
    """One more token for each row of a batch that has a short past; calling it again does the same again."""

    PAST = 8

    def __init__(self, model: Any, batch: int) -> None:
        self.model = model
        with torch.no_grad():
            past = model(input_ids=torch.full((batch, self.PAST), 7), use_cache=True)
        name = "cache" if "cache" in past else "past_key_values"  # the new name since transformers 5.24
        self.cache, self.named = past[name], {name: past[name]}
        self.ids = torch.full((batch, 1), 7)

    def __call__(self) -> None:
        self.model(input_ids=self.ids, use_cache=True, **self.named)
        self.cache.crop(-1)


def _less(longer: list[float], shorter: list[float]) -> list[float]:
    return [a - b for a, b in zip(longer, shorter, strict=True)]
