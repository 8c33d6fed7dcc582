"""What attaching costs a forward of real length, as ratios, and in memory: at least 0.3 s a forward, on one thread."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.attach_cost import DecodingStep, timed_calls
from benchmarks.hosts import attach, build_host, plain_inputs, prompted_inputs, sharing
from benchmarks.rows import Row, median_row, ratios

SHORTEST = 0.3
QUERIES = 32
HOST = {"hidden_size": 1024, "intermediate_size": 2816, "layers": 8, "heads": 16}


def measure(rounds: int = 40, shortest: float = SHORTEST, sizes: dict[str, int] = HOST) -> list[Row]:
    """Return the ratios of a prefill and of a decoding step, each of at least `shortest` seconds, and the memory."""
    host = build_host(**sizes)
    attached, disabled = attach(sharing(host), QUERIES), attach(sharing(host), QUERIES)
    text_tokens = _enough(lambda count: lambda: host(**plain_inputs(count)), shortest)
    batch = _enough(lambda count: DecodingStep(host, count), shortest)
    plain, longer = plain_inputs(text_tokens), plain_inputs(text_tokens, QUERIES)
    prompted = prompted_inputs(text_tokens, QUERIES)
    steps = DecodingStep(host, batch), DecodingStep(attached, batch)
    times = timed_calls(host, attached, disabled, plain, longer, prompted, *steps, rounds=rounds)
    parts = [a + b for a, b in zip(times["host, more tokens"], times["vpp alone"], strict=True)]
    prefill, step = (f"{1000 * min(times[name]):.0f} ms" for name in ("host", "host step"))
    return [
        median_row(
            "prefill attached, to the same tokens and VPP alone",
            ratios(times["attached"], parts),
            unit="x",
            bar=1.03,
            note=f"a prefill of {prefill}",
        ),
        median_row(
            "prefill with VPP disabled, to the bare host",
            ratios(times["disabled"], times["host"]),
            unit="x",
            bar=1.01,
            note=f"a prefill of {prefill}",
        ),
        median_row(
            "decoding step attached, to the bare host",
            ratios(times["attached step"], times["host step"]),
            unit="x",
            bar=1.01,
            note=f"a step of {step}, for a batch of {batch}",
        ),
        *_memory(host, attached, longer, prompted),
    ]


def _memory(host: Any, attached: Any, longer: dict[str, Any], prompted: dict[str, Any]) -> list[Row]:
    """Bytes are those that torch asks its allocator for, so they are the same in every run."""
    width, side = host.config.text_config.hidden_size, 32
    with torch.no_grad():
        bare, _ = allocated(lambda: host(**longer))
        peak, left = allocated(lambda: attached(**prompted))
    tokens = 4 * QUERIES * width
    prompt = 4 * 4 * side * side
    return [
        Row(
            name="memory at a forward's peak beyond the host with the same tokens",
            value=(peak - bare) / 1024,
            unit="KiB",
            bar=(tokens + prompt) / 1024,
            note=f"the bar: the {QUERIES} tokens, {tokens / 1024:g} KiB, and the prompt itself, {prompt / 1024:g} KiB",
        ),
        Row(name="memory left after a forward", value=left / 1024, unit="KiB", bar=0.0),
    ]


def allocated(run: Callable[[], Any]) -> tuple[int, int]:
    """Return the bytes at the peak of a run, and those left after it."""

    def run_and_forget() -> None:
        run()

    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run_and_forget()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    return peak, now


def _enough(make: Callable[[int], Callable[[], Any]], shortest: float) -> int:
    """Return the count, a power of two from 8 on, from which a run takes long enough."""
    count = 8
    while True:
        run = make(count)
        with torch.no_grad():
            run()
            began = time.process_time()
            run()
            if time.process_time() - began >= 1.1 * shortest:
                return count
        count *= 2
