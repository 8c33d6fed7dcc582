"""What attaching costs a forward on the host's side, beyond the prompts' own work and the extra tokens.

Every round times all variants one after another, so that a busy machine slows all of them, and in a random order,
because each leaves its own data in the caches. A row is the median over the rounds of a difference within the round,
with a bootstrap interval. The host is tiny, so that it does not drown the differences.
"""

import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, UntrainedVPPWarning, VPPConfig, attach_vpp, vpp_disabled

ROUNDS = 200
IMAGE_ID, VPP_ID, QUERIES = 4, 5, 16


@dataclass(frozen=True)
class Row:
    """A measured median in milliseconds, its 95 % bootstrap interval, and the bar it must not exceed."""

    name: str
    value: float
    interval: tuple[float, float]
    bar: float

    @property
    def status(self) -> Literal["pass", "fail", "inconclusive"]:
        """Whether the interval lies below the bar, above it, or across."""
        low, high = self.interval
        return "pass" if high <= self.bar else "fail" if low > self.bar else "inconclusive"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "value": self.value,
            "interval": self.interval,
            "bar": self.bar,
            "status": self.status,
        }


def measure() -> list[Row]:
    """Return both rows: disabled, and attached."""
    host, attached = _host(), attach_vpp(_host(), _config())
    attached.vpp.bind_token(VPP_ID)
    pixels, detector_pixels = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 64, 64)
    plain = {"input_ids": torch.tensor([[1, *[IMAGE_ID] * 16, *[7] * 32]]), "pixel_values": pixels}
    longer = {"input_ids": torch.tensor([[1, *[IMAGE_ID] * 16, *[6] * QUERIES, *[7] * 32]]), "pixel_values": pixels}
    prompted = {
        "input_ids": longer["input_ids"].masked_fill(longer["input_ids"] == 6, VPP_ID),
        "pixel_values": pixels,
        "vpp_pixel_values": detector_pixels,
    }
    variants: dict[str, Callable[[], Any]] = {
        "host": lambda: host(**plain),
        "disabled": lambda: attached(**plain),
        "host, more tokens": lambda: host(**longer),
        "attached": lambda: attached(**prompted),
        "vpp alone": lambda: attached.vpp(detector_pixels),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    order = random.Random(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedVPPWarning)
        for round_number in range(ROUNDS + 10):
            for name in order.sample(sorted(variants), len(variants)):
                took = _timed(variants[name], attached if name == "disabled" else None)
                if round_number >= 10:  # the first rounds warm caches up
                    times[name].append(took)
    disabled = [a - b for a, b in zip(times["disabled"], times["host"], strict=True)]
    columns = zip(times["attached"], times["host, more tokens"], times["vpp alone"], strict=True)
    return [
        _row("host time added by a disabled VPP", disabled, 0.3),
        _row("host time added by an attached VPP", [a - b - c for a, b, c in columns], 1.0),
    ]


def _timed(run: Callable[[], Any], disable: Any) -> float:
    """Return milliseconds; entering vpp_disabled is not part of a forward and stays outside the clock."""
    if disable is None:
        began = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - began)
    with vpp_disabled(disable):
        return _timed(run, None)


def _row(name: str, differences: list[float], bar: float) -> Row:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(differences, k=len(differences))) for _ in range(1000))
    return Row(name, statistics.median(differences), (medians[25], medians[974]), bar)


def _host() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
        image_token_id=IMAGE_ID,
    )
    return LlavaForConditionalGeneration(config).eval()


def _config() -> VPPConfig:
    detector = {
        "backbone": "resnet10t",
        "width": 32,
        "heads": 4,
        "feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    return VPPConfig(
        global_vpp=GlobalVPPConfig(size=32, border=4),
        local_vpp=LocalVPPConfig(num_queries=QUERIES, image_size=64, projector_size=16, generator_options=detector),
    )
