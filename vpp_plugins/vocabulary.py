"""Room for one more token in a host that has no spare row, and the way back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def rows_of(host: Any) -> int:
    """Return how many token ids the host's input embedding holds."""
    rows: int = host.get_input_embeddings().weight.shape[0]
    return rows


def grow(host: Any, rows: int) -> None:
    """Append zero rows to the vocabulary, up to `rows`; modules stay, Parameters are new, the random state is untouched."""
    missing = rows - rows_of(host)
    _replace(host, lambda table: torch.cat([table, table.new_zeros(missing, *table.shape[1:])]))
    _record(host, rows)


def shrink(host: Any, rows: int) -> None:
    """Cut the vocabulary back to its first `rows` rows, bit for bit what they were."""
    _replace(host, lambda table: table[:rows].clone())
    _record(host, rows)


@contextmanager
def narrowed(host: Any, rows: int | None) -> Iterator[None]:
    """Show the host with its first `rows` rows only, as views of the grown tables; None changes nothing."""
    if rows is None:
        yield
        return
    tables = _tables(host)
    grown = [table.data for table in tables]
    total = grown[0].shape[0]
    try:
        for table in tables:
            table.data = table.data[:rows]
        _record(host, rows)
        yield
    finally:
        for table, data in zip(tables, grown, strict=True):
            table.data = data
        _record(host, total)


def _replace(host: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Give the modules new Parameters: an old one would keep its shape in every live autograd graph."""
    new = {id(old): nn.Parameter(change(old.detach()), requires_grad=old.requires_grad) for old in _tables(host)}
    for module in _modules(host):
        for name, old in list(module.named_parameters(recurse=False)):
            if id(old) in new:
                setattr(module, name, new[id(old)])


def _tables(host: Any) -> list[nn.Parameter]:
    """Return the Parameters with one row per token id, each once also where the head is tied to the embedding."""
    rows = rows_of(host)
    found = {id(p): p for module in _modules(host) for p in module.parameters(recurse=False)}
    return [parameter for parameter in found.values() if parameter.shape[0] == rows]


def _modules(host: Any) -> list[nn.Module]:
    modules = (host.get_input_embeddings(), host.get_output_embeddings())
    return [module for module in modules if module is not None]


def _record(host: Any, rows: int) -> None:
    host.get_input_embeddings().num_embeddings = rows
    head = host.get_output_embeddings()
    if isinstance(head, nn.Linear):
        head.out_features = rows
    host.config.get_text_config().vocab_size = rows
