"""What VPP costs a training step, in time and in memory: forward, backward and AdamW, on one thread.

The floor is measured too. It is a step of the bare host with as many tokens, whose gradient goes as far back as the
prompts need it (to the pixels and to the embeddings), and the prompts' own forward, backward and step.
"""

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.host_time import allocated
from benchmarks.hosts import attach, build_host, plain_inputs, prompted_inputs, sharing
from benchmarks.rows import Row, interleaved, median_row, ratios

QUERIES, TEXT_TOKENS, RANK = 32, 192, 16
HOST = {"hidden_size": 768, "intermediate_size": 2048, "layers": 6, "heads": 12}
LORA = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
KIB = 1024


def measure(rounds: int = 15, sizes: dict[str, int] = HOST) -> list[Row]:
    """Return step time, peak memory and AdamW's memory of LoRA with VPP, and of VPP alone on a frozen host."""
    return [row for lora in (True, False) for row in _rows(lora, rounds, sizes)]


def _rows(lora: bool, rounds: int, sizes: dict[str, int]) -> Iterator[Row]:
    what = "LoRA step with VPP" if lora else "step of the prompts alone"
    host = build_host(**sizes).requires_grad_(False)
    attached = attach(sharing(host), QUERIES)
    models: dict[str, Any] = {"bare": sharing(host), "floor": sharing(host), "attached": attached}
    if lora:
        models = {name: _with_lora(model) for name, model in models.items()}
    attached.vpp.requires_grad_(True)
    longer, prompted = plain_inputs(TEXT_TOKENS, QUERIES), prompted_inputs(TEXT_TOKENS, QUERIES)
    reaching = longer | {"pixel_values": longer["pixel_values"].clone().requires_grad_()}
    models["floor"].enable_input_require_grads()
    prompts = copy.deepcopy(attached.vpp)
    steps = {
        "floor": Step(models["floor"], lambda: _loss(models["floor"], reaching)),
        "attached": Step(models["attached"], lambda: _loss(models["attached"], prompted)),
        "prompts": Step(prompts, lambda: _own_loss(prompts, prompted)),
    }
    if lora:
        steps["bare"] = Step(models["bare"], lambda: _loss(models["bare"], longer))

    times = interleaved(steps, rounds=rounds)

    floor = [a + b for a, b in zip(times["floor"], times["prompts"], strict=True)]
    whole, own = (f"{1000 * statistics.median(times[name]):.0f} ms" for name in ("attached", "prompts"))
    shown = f"a step of {whole}, {own} of it the prompts' own"
    yield median_row(f"{what}, to its floor", ratios(times["attached"], floor), unit="x", bar=1.05, note=shown)
    if lora:
        yield median_row(f"{what}, to LoRA's of the bare host", ratios(times["attached"], times["bare"]), unit="x")
    yield from _memory(what, steps, sizes["hidden_size"])


def _memory(what: str, steps: dict[str, "Step"], width: int) -> Iterator[Row]:
    """Bytes are those that torch asks its allocator for, so they are the same in every run."""
    peaks = {name: allocated(steps[name].gradients)[0] for name in ("floor", "attached")}
    kept: list[Tensor] = []
    _, held = allocated(lambda: kept.append(steps["prompts"].loss()))
    tokens = 4 * QUERIES * width
    yield Row(
        name=f"memory at the peak of a {what}, beyond its floor",
        value=(peaks["attached"] - peaks["floor"] - held) / KIB,
        unit="KiB",
        bar=2 * tokens / KIB,
        note=f"{peaks['attached'] / KIB:,.0f} KiB at the peak; the floor is the bare host's and {held / KIB:,.0f} KiB "
        "that the prompts keep for their backward, the bar the tokens' features and their gradients, twice "
        f"{tokens / KIB:g} KiB",
    )
    others = steps["bare"].state_bytes() if "bare" in steps else 0
    numbers = steps["prompts"].numbers
    yield Row(
        name=f"AdamW's memory for each number of the prompts, in a {what}",
        value=(steps["attached"].state_bytes() - others) / numbers,
        unit="bytes",
        bar=8.0,
        note=f"two in float32 for each of the {numbers:,} numbers of the prompts",
    )


class Step:
    """A training step of what requires a gradient in a model; calling it takes one."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        self.loss = loss
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.numbers = sum(parameter.numel() for parameter in parameters)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6) if parameters else None

    def __call__(self) -> None:
        with torch.enable_grad():
            self.loss().backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> None:
        """Run forward and backward, and forget the gradients: AdamW's buffers would hide what these take."""
        self.loss().backward()
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def state_bytes(self) -> int:
        """Return the bytes of the optimizer's moments."""
        state = {} if self.optimizer is None else self.optimizer.state
        moments = [values[name] for values in state.values() for name in ("exp_avg", "exp_avg_sq")]
        return sum(moment.numel() * moment.element_size() for moment in moments)


def _loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**inputs, labels=inputs["input_ids"]).loss
    return loss


def _own_loss(prompts: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return a number that the gradients of all of the prompts come from, at their place's sizes."""
    made = prompts(inputs["vpp_pixel_values"])
    total: Tensor = made.features.square().mean() + made.overlay.blend(inputs["pixel_values"]).square().mean()
    return total


def _with_lora(host: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(host, LoraConfig(r=RANK, target_modules=LORA))
