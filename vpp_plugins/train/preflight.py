"""Before a run learns anything: what is trained, what the first sample's tokens are, and whether gradients arrive."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float64, Int64
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vpp_plugins.data import TrainingData
from vpp_plugins.errors import VPPError
from vpp_plugins.train.collate import Collator, real_tokens
from vpp_plugins.train.labels import IGNORED
from vpp_plugins.train.packing import PackingCollator

REASONS: Mapping[str, str] = {
    "llm": "the labels are all -100, or gradient checkpointing is the re-entrant one",
    "lora": "its layers are not on the way from the images to the loss, or the PEFT adapter is switched off",
    "projector": "the batch's images did not reach the model, or their features came precomputed",
    "vision": "something between it and the loss runs under no_grad, or is detached",
    "vpp.global": "alpha is 1, or the vision encoder runs under no_grad",
    "vpp.local": "the generator runs under no_grad, or its queries are detached",
    "vpp.projector": "placeholders are not in input_ids, so that its features enter nowhere",
}
"""Why a part usually gets no gradient."""
LONG = 4
"""Tokens of one kind in a row that are counted, not written out."""
Groups = Sequence[Mapping[str, Any]]


def show(
    data: TrainingData, collator: Collator, groups: Groups, *, off: Sequence[str] = (), answers: bool = True
) -> None:
    """Print what is trained, the faults of the data, and the first sample's tokens; `off` has nothing to act on."""
    console = Console(stderr=True)
    if off:
        console.print(f"Trained without prompts, so these have nothing to act on: {', '.join(off)}.", highlight=False)
    table = Table(title=f"{len(data)} samples; what is trained")
    scheduled = any(group["schedule"] for group in groups)
    for column in ("part", "tensors", "parameters", "learning rate", "weight decay", *["schedule"] * scheduled):
        table.add_column(column, justify="left" if column in ("part", "schedule") else "right")
    for group in groups:
        tensors, rate, decay = group["params"], float(group["lr"]), float(group["weight_decay"])
        numbers = sum(parameter.numel() for parameter in tensors)
        own = [group["schedule"] or "the run's"] * scheduled
        table.add_row(group["name"], f"{len(tensors)}", f"{numbers:,}", f"{rate:g}", f"{decay:g}", *own)
    console.print(table)
    for issue, count, examples in data.tally.rows():
        console.print(f"{count} x {issue}: {examples}", highlight=False)
    learned = "what is learned between ⟦ and ⟧" if answers else "its answers, which are not learned, between ⟦ and ⟧"
    console.print(f"The first sample, {learned}:")
    console.print(preview(collator, 0))


def preview(collator: Collator, index: int) -> Text:
    """Return a sample's exact tokens, those that are learned in green between ⟦ and ⟧."""
    if isinstance(collator, PackingCollator):
        collator = collator.readable()
    batch = collator.batch([collator.usable(collator.data[index], {})])
    mask = real_tokens(batch["attention_mask"])[0]
    text = Text()
    for piece, learned in token_string(
        batch["input_ids"][0][mask], batch["labels"][0][mask], collator.processor.tokenizer
    ):
        text.append(f"⟦{piece}⟧" if learned else piece, style="green" if learned else "")
    return text


def squared_norms(groups: Groups) -> Float64[Tensor, " groups"]:
    """Return the squared gradient norm of each group, of this process' shards; -1 for a group without any gradient."""
    from torch.distributed.tensor import DTensor

    norms = []
    for group in groups:
        whole = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        gradients = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in whole]
        norms.append(sum((float(g.double().square().sum()) for g in gradients), 0.0) if gradients else -1.0)
    return torch.tensor(norms, dtype=torch.float64)


def check_gradients(groups: Groups, squares: Float64[Tensor, " groups"]) -> None:
    """Raise VPPError, with the reason that it usually has, where a group's gradient is missing, zero or NaN."""
    for group, square in zip(groups, squares.tolist(), strict=True):
        name = str(group["name"])
        if math.isfinite(square) and square > 0:
            continue
        if not math.isfinite(square):
            raise VPPError(
                f"the first gradient of '{name}' is {square}: float16 without a scaler overflows so, and so do broken "
                "weights. Set bf16=true instead of fp16, and check the host's weights."
            )
        what = "has no gradient" if square < 0 else "has a gradient of exactly zero"
        raise VPPError(
            f"'{name}' is to be trained, but {what} after the first batch. Usually {REASONS[name.split()[0]]}. Freeze "
            f'it (freeze = ["{name.split()[0]}"]) if it is not meant to learn.'
        )


def give_every_parameter_a_gradient(groups: Groups) -> None:
    """Give zeros to those that the model does not use, as LLaVA its last vision layer.

    The optimizer then has numbers for each, without which FSDP does not load the checkpoint's.
    """
    for group in groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def token_string(
    ids: Int64[Tensor, " length"], labels: Int64[Tensor, " length"], tokenizer: Any
) -> list[tuple[str, bool]]:
    """Return a sample's exact tokens as pieces of text, and whether each is learned; runs of a token are counted.

    `[("<s>USER: ", False), ("<image> x 576", False), ..., ("[0.1, 0.2]</s>", True)]`
    """
    pieces: list[tuple[str, bool]] = []
    tokens, learned = ids.tolist(), (labels != IGNORED).tolist()
    runs = [[*run] for _, run in groupby(range(len(ids)), key=tokens.__getitem__)]
    long = {at: run[0] for run in runs if len(run) >= LONG for at in run}
    for (start, is_learned), places in groupby(range(len(ids)), key=lambda at: (long.get(at), learned[at])):
        part = ids[[*places]]
        if start is None:
            pieces.append((tokenizer.decode(part, skip_special_tokens=False), is_learned))
        else:
            pieces.append((f"{tokenizer.convert_ids_to_tokens(tokens[start])} x {len(part)}", is_learned))
    return pieces
