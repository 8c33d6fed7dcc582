"""Room for one more token in a host that has no spare row, and the way back; tokens that are never an answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins.errors import VPPError

ROWS_FILE = "vpp_rows.safetensors"
"""In a checkpoint, what training made of the rows that the placeholder added to the vocabulary."""

SECOND = "additional_embedding"
"""IDEFICS keeps its own tokens, the last ones, in a second table within its embedding."""

Whole = tuple[nn.Parameter, Tensor, Tensor | None]
"""A table of the vocabulary, all of its rows, and all of its gradient's."""


def image_token_id(host: Any) -> int | None:
    """Return the token that stands for a part of an image in the host's ids, or None where it names none."""
    settings = host.config.to_dict()
    return settings.get("image_token_id", settings.get("image_token_index"))


def rows_of(host: Any) -> int:
    """Return how many token ids the host's input embedding holds."""
    embedding = host.get_input_embeddings()
    tables = [embedding, *(second for name, second in embedding.named_children() if name == SECOND)]
    return sum(len(table.weight) for table in tables)


def grow(host: Any, rows: int) -> None:
    """Append zero rows to the vocabulary, up to `rows`; modules stay, Parameters are new, nothing random happens."""
    if any(name == SECOND for name, _ in host.get_input_embeddings().named_children()):
        raise VPPError(
            "the vocabulary of this host cannot grow by the placeholder, because it ends in a second table of its own "
            "tokens: use a tokenizer that leaves an id of the model free, or the global prompt alone, "
            "VPPConfig(local_vpp=None)."
        )
    missing = rows - rows_of(host)
    _replace(host, lambda table: torch.cat([table, table.new_zeros(missing, *table.shape[1:])]))
    _record(host, rows)


def shrink(host: Any, rows: int) -> None:
    """Cut the vocabulary back to its first `rows` rows, bit for bit what they were."""
    _replace(host, lambda table: table[:rows].clone())
    _record(host, rows)


def added_rows(host: Any) -> dict[str, Tensor]:
    """Return the rows that `<|vpp|>` added to the vocabulary's tables, by their names; {} where there are none."""
    rows = host._vpp_state.host_rows
    if rows is None:
        return {}
    return {name: table.detach()[rows:].cpu().clone() for name, table in _named_tables(host).items()}


def put_rows(host: Any, saved: Mapping[str, Tensor]) -> None:
    """Put rows that `added_rows` returned back."""
    rows = host._vpp_state.host_rows
    with torch.no_grad():
        for name, table in _named_tables(host).items():
            table[rows:] = saved[name].to(table)


def narrow(host: Any, rows: int) -> list[Whole]:
    """Show the host with its first `rows` rows only, as views, and return the whole tables for `widen`."""
    tables = [(table, table.data, table.grad) for table in _tables(host)]
    for table, data, grad in tables:
        _fill(table, data[:rows], None if grad is None else grad[:rows])
    _record(host, rows)
    return tables


def widen(host: Any, tables: list[Whole]) -> None:
    """Undo `narrow`; what was done to the rows meanwhile, such as training or moving them, stays."""
    for table, data, grad in tables:
        rest = torch.zeros_like(data) if grad is None else grad
        _fill(table, _widened(table.data, data), None if table.grad is None else _widened(table.grad, rest))
    _record(host, rows_of(host))


@contextmanager
def narrowed(host: Any, rows: int | None) -> Iterator[None]:
    """Show the host with its first `rows` rows only; None, and no fewer rows than it has, change nothing."""
    if rows is None or rows_of(host) <= rows:
        yield
        return
    tables = narrow(host, rows)
    try:
        yield
    finally:
        widen(host, tables)


def _fill(table: nn.Parameter, data: Tensor, grad: Tensor | None) -> None:
    table.grad = None  # torch wants it in the shape of the data
    table.data = data
    table.grad = grad


def _widened(rows: Tensor, whole: Tensor) -> Tensor:
    """Return `whole` where the rows are still its own, else the rows with what `whole` has beyond them."""
    if (rows.data_ptr(), rows.dtype, rows.device) == (whole.data_ptr(), whole.dtype, whole.device):
        return whole
    return torch.cat([rows, whole[len(rows) :].to(rows)])


def _replace(host: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Give the modules new Parameters: an old one would keep its shape in every live autograd graph."""
    if any(list(module.children()) for module in _vocabularies(host)):
        raise VPPError(
            "the vocabulary cannot change its size while PEFT wraps the embedding or the head: make the VPPProcessor "
            "before get_peft_model, and call detach_vpp after merge_and_unload or unload."
        )
    new = {id(old): nn.Parameter(change(old.detach()), requires_grad=old.requires_grad) for old in _tables(host)}
    for module in _vocabularies(host):
        for name, old in list(module.named_parameters(recurse=False)):
            if id(old) in new:
                setattr(module, name, new[id(old)])


def _named_tables(host: Any) -> dict[str, nn.Parameter]:
    """Return the vocabulary's tables by a name each; a tied head is the embedding itself."""
    head = host.get_output_embeddings()
    tables = {"embedding": host.get_input_embeddings().weight}
    return tables if head is None or head.weight is tables["embedding"] else {**tables, "head": head.weight}


def _tables(host: Any) -> list[nn.Parameter]:
    """Return the Parameters with one row per token id, each once also where the head is tied to the embedding."""
    rows = rows_of(host)
    found = {id(p): p for module in _vocabularies(host) for p in module.parameters()}
    tables = [parameter for parameter in found.values() if parameter.shape[0] == rows]
    if any(table.is_meta for table in tables):
        raise VPPError(
            "the vocabulary cannot change its size while accelerate offloads its weights: make the VPPProcessor before "
            "dispatching the model, and remove accelerate's hooks before detach_vpp, vpp_disabled and save_pretrained."
        )
    return tables


def _vocabularies(host: Any) -> list[nn.Module]:
    modules = (host.get_input_embeddings(), host.get_output_embeddings())
    return [module for module in modules if module is not None]


def _record(host: Any, rows: int) -> None:
    for part in (part for module in _vocabularies(host) for part in module.modules()):
        if isinstance(part, nn.Embedding):
            part.num_embeddings = part.weight.shape[0]
        elif isinstance(part, nn.Linear) and part.weight.shape[0] == rows:  # packed weights have other shapes
            part.out_features = rows
    host.config.get_text_config().vocab_size = rows


class NeverTokens:
    """A logits processor that makes tokens impossible; separate from `suppress_tokens`, which stays the user's."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[..., [i for i in self.token_ids if i < scores.shape[-1]]] = -torch.inf  # some hosts embed more than that
        return scores


def with_never(given: Any, token_ids: set[int]) -> Any:
    """Return the given logits processors, None is none, with NeverTokens among them where there is need."""
    if not token_ids or any(isinstance(one, NeverTokens) and token_ids <= {*one.token_ids} for one in given or ()):
        return given
    from transformers import LogitsProcessorList

    return LogitsProcessorList([*(given or []), NeverTokens(sorted(token_ids))])
