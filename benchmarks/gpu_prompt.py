"""What CUDA graphs gain for the local prompt, against running without: rows of `benchmarks.gpu`.

They come by torch's compiler, `model.vpp.local_vpp.compile(mode="reduce-overhead")`. On a CPU, which has none, the rows
show that it all runs: the prompt is traced and not compiled.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.hosts import sharing
from benchmarks.rows import Row, check_same, interleaved, median_row, ratios

NAMES = (
    "GPU: local prompt, CUDA graphs, to eager",
    "GPU: prefill, CUDA graphs for the local prompt, to eager",
)


def prompt_rows(attached: Any, prompted: dict[str, Tensor], rounds: int, clock: Callable[[], float]) -> list[Row]:
    """Return the rows of a model with both prompts and inputs with an image; the model stays as it is."""
    images = prompted["vpp_pixel_values"]
    graphed = sharing(attached)
    graphed.vpp.local_vpp.compile(**({"mode": "reduce-overhead"} if images.is_cuda else {"backend": "eager"}))
    with torch.no_grad():
        began = clock()
        for _ in range(3):  # compiles, runs once as it will be recorded, records
            graphed.vpp.local_vpp(images)
        note = f"compiling and recording took {clock() - began:.1f} s"
        expected = attached(**prompted).logits
        tolerance = 1e-4 if expected.dtype == torch.float32 else 0.05
        check_same("a compiled prompt", graphed(**prompted).logits, expected, tolerance)
    alone = interleaved(
        {
            "eager": lambda: attached.vpp.local_vpp(images),
            "graphed": lambda: graphed.vpp.local_vpp(images),
        },
        rounds=rounds,
        clock=clock,
    )
    prefill = interleaved(
        {
            "eager": lambda: attached(**prompted),
            "graphed": lambda: graphed(**prompted),
        },
        rounds=rounds,
        clock=clock,
    )
    samples = (
        ratios(alone["graphed"], alone["eager"]),
        ratios(prefill["graphed"], prefill["eager"]),
    )
    if not images.is_cuda:
        note = "a CPU has no CUDA graphs: nothing is compared here"
    return [median_row(name, times, unit="x", note=note) for name, times in zip(NAMES, samples, strict=True)]
