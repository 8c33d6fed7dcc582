"""The attentions that a CPU has, on the detector's own sizes: torch's SDPA, by default, against the plain twin.

On a GPU, `benchmarks.gpu` times xformers against both.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Row, interleaved, median_row, ratios
from vpp_plugins.prompts import attend, attend_ragged

IMAGES, HEADS, WIDTH = 4, 8, 32
SIZES = {"encoder": (400, 400), "decoder": (100, 400)}
"""Queries and keys of an image of 640 pixels."""
IMAGED = (266, 300, 225, 300)
"""How many of 400 tokens are image, for photographs of 3:2, 4:3, 16:9 and 3:4."""


def measure(rounds: int = 30, times_round: int = 2) -> list[Row]:
    """Return how much quicker SDPA is, forward and with its backward, and packed segments against masked padding."""
    rows = []
    for layer, (queries, keys) in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            query, key, value = (_random(length, dtype) for length in (queries, keys, keys))
            note = _errors(query, key, value)
            for what, run in (("forward", _forward), ("forward and backward", _with_backward)):
                variants = {
                    name: _repeated(times_round, run, attend, query, key, value, implementation=name)
                    for name in ("sdpa", "math")
                }
                times = interleaved(variants, rounds=rounds)
                name = f"attention, {layer}, {str(dtype).removeprefix('torch.')}, {what}: SDPA, speed against plain"
                rows.append(median_row(name, ratios(times["math"], times["sdpa"]), unit="x", better="more", note=note))
    return [*rows, _ragged_row(rounds, times_round)]


def _ragged_row(rounds: int, times_round: int) -> Row:
    padded = _random(SIZES["encoder"][0], torch.float32)
    mask = torch.arange(padded.shape[2]) < torch.tensor(IMAGED)[:, None]
    packed = padded.transpose(1, 2)[mask][None]
    variants = {
        "masked": _repeated(times_round, _forward, attend, padded, padded, padded, mask=mask),
        "packed": _repeated(times_round, _forward, attend_ragged, packed, packed, packed, IMAGED, IMAGED),
    }
    times = interleaved(variants, rounds=rounds)
    name = "attention, encoder, float32, forward: packed segments, speed against masked padding"
    note = f"{IMAGES} images, {sum(IMAGED) / IMAGES / padded.shape[2]:.0%} of whose tokens are image"
    return median_row(name, ratios(times["masked"], times["packed"]), unit="x", better="more", note=note)


def _errors(query: Tensor, key: Tensor, value: Tensor) -> str:
    exact = attend(query.double(), key.double(), value.double(), implementation="math")
    found = {name: attend(query, key, value, implementation=name).double() for name in ("sdpa", "math")}
    sdpa, plain = (float((one - exact).abs().max()) for one in found.values())
    return f"largest errors: SDPA {sdpa:.0e}, plain {plain:.0e}"


def _random(tokens: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(IMAGES, HEADS, tokens, WIDTH, generator=generator).to(dtype)


def _forward(attention: Callable[..., Tensor], *tensors: Any, **settings: Any) -> None:
    with torch.no_grad():
        attention(*tensors, **settings)


def _with_backward(attention: Callable[..., Tensor], *tensors: Any, **settings: Any) -> None:
    with torch.enable_grad():
        attention(*(tensor.detach().requires_grad_() for tensor in tensors), **settings).sum().backward()


def _repeated(times: int, run: Callable[..., None], *arguments: Any, **settings: Any) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            run(*arguments, **settings)

    return repeat
