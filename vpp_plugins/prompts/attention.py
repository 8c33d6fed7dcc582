"""Attention behind one door: xformers on CUDA, torch's own elsewhere, and a plain twin that tests hold them against."""

import functools
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vpp_plugins.errors import VPPError, install_command, known_name

IMPLEMENTATIONS = ("xformers", "sdpa", "math")

_TORCHS = "torch's scaled_dot_product_attention"

# A plain global, not a ContextVar: checkpointed layers are recomputed in autograd's own threads and must choose alike.
_override: str | None = None


@contextmanager
def attention_implementation(implementation: str) -> Iterator[None]:
    """Run every attention of the process with "xformers", "sdpa" or "math"; an `implementation` argument still wins."""
    global _override
    before, _override = _override, known_name(implementation, IMPLEMENTATIONS, "attention")
    try:
        yield
    finally:
        _override = before


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
    *,
    mask: Bool[Tensor, "batch keys"] | None = None,
    dropout: float = 0.0,
    implementation: str | None = None,
) -> Float[Tensor, "batch heads queries dim"]:
    """Return softmax(query keyᵀ / √dim) value.

    `mask` is True on the keys to attend to; where it leaves none, the result and its gradients are zeros. `dropout` is
    the probability of dropping an attention weight: pass 0 outside training. `implementation` is "xformers", "sdpa" or
    "math". Without it, CUDA tensors take xformers where that is installed and has a kernel for them, and all others
    torch's scaled_dot_product_attention. Raises VPPError when a named implementation is unknown or cannot run here.
    """
    chosen = _chosen(query, implementation)
    if chosen == "math" or query.numel() == 0 or key.numel() == 0:
        return _math(query, key, value, None if mask is None else mask[:, None, None, :], dropout)
    if mask is None:
        return _dense(chosen, query, key, value, None, dropout)
    # A row without keys is NaN in some kernels. It attends to everything here and is then cleared, gradients included.
    nothing = ~mask.any(dim=1)
    attended = _dense(chosen, query, key, value, mask | nothing[:, None], dropout)
    return attended.masked_fill(nothing[:, None, None, None], 0.0)


def attend_ragged(
    query: Float[Tensor, "1 queries heads dim"],
    key: Float[Tensor, "1 keys heads dim"],
    value: Float[Tensor, "1 keys heads dim"],
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    *,
    dropout: float = 0.0,
    implementation: str | None = None,
) -> Float[Tensor, "1 queries heads dim"]:
    """Attend within segments of different lengths, packed one after the other along the token axis without padding.

    Segment i has `query_lengths[i]` queries, which attend to its `key_lengths[i]` keys and to nothing else; without
    keys they give zeros. Note the axes: tokens come before heads, as they do out of a projection. The rest is `attend`.
    """
    _check_lengths(query.shape[1], query_lengths, key.shape[1], key_lengths)
    chosen = _chosen(query, implementation)
    full = [queries > 0 and keys > 0 for queries, keys in zip(query_lengths, key_lengths, strict=True)]
    if chosen == "math" or not any(full):
        same = _segments(query_lengths)[:, None] == _segments(key_lengths)
        return _math(*_swap_axes(query, key, value), same.to(query.device), dropout).transpose(1, 2)
    if all(full):
        return _packed(chosen, query, key, value, list(query_lengths), list(key_lengths), dropout)
    # Kernels leave the rows of an empty segment unwritten, in the backward pass too.
    query_rows, key_rows = (_rows(lengths, full).to(query.device) for lengths in (query_lengths, key_lengths))
    attended = _packed(
        chosen,
        query[:, query_rows],
        key[:, key_rows],
        value[:, key_rows],
        [length for length, kept in zip(query_lengths, full, strict=True) if kept],
        [length for length, kept in zip(key_lengths, full, strict=True) if kept],
        dropout,
    )
    return attended.new_zeros(query.shape).index_copy(1, query_rows, attended)


def attention_report() -> dict[str, str]:
    """Return in words which attention runs on CUDA tensors, and which on all others, and why.

    xformers is not imported for it, but its library is loaded where it can be.
    """
    return {"attention on CUDA": _on_cuda(), "attention elsewhere": _TORCHS}


def ragged_pays(tokens: Tensor) -> bool:
    """Return whether packing images for `attend_ragged` is quicker here than padding them and masking the padding.

    On CUDA that takes xformers' one kernel for all segments; and lengths must be known to Python, which neither a
    compiled graph nor a captured one allows.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if not tokens.is_cuda:
        return tokens.is_cpu
    return _takes_xformers(_chosen(tokens, None), tokens) and not torch.cuda.is_current_stream_capturing()


def _math(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The plain twin: what the others must equal. `mask` broadcasts to the scores."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is None:
        weights = scores.softmax(dim=-1)
    else:
        weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1).masked_fill(~mask, 0.0)
    return F.dropout(weights, dropout) @ value


def _dense(
    chosen: str | None, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    if _takes_xformers(chosen, query):
        try:
            return _xformers_dense(query, key, value, mask, dropout)
        except NotImplementedError as error:
            _refuse_if_named(chosen, error)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=None if mask is None else mask[:, None, None, :], dropout_p=dropout
    )


def _packed(
    chosen: str | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_lengths: list[int],
    key_lengths: list[int],
    dropout: float,
) -> Tensor:
    if _takes_xformers(chosen, query):
        try:
            return _xformers_packed(query, key, value, query_lengths, key_lengths, dropout)
        except NotImplementedError as error:
            _refuse_if_named(chosen, error)
    lengths = (query_lengths, key_lengths, key_lengths)
    parts = (torch.split(tensor, sizes, dim=1) for tensor, sizes in zip((query, key, value), lengths, strict=True))
    attended = [
        F.scaled_dot_product_attention(*_swap_axes(*part), dropout_p=dropout) for part in zip(*parts, strict=True)
    ]
    return torch.cat(attended, dim=2).transpose(1, 2)


def _xformers_dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = None if mask is None else _aligned_bias(query, mask)
    return memory_efficient_attention(*_swap_axes(query, key, value), attn_bias=bias, p=dropout).transpose(1, 2)


def _xformers_packed(
    query: Tensor, key: Tensor, value: Tensor, query_lengths: list[int], key_lengths: list[int], dropout: float
) -> Tensor:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha import BlockDiagonalMask

    blocks = BlockDiagonalMask.from_seqlens(query_lengths, key_lengths, device=query.device)
    return memory_efficient_attention(query, key, value, attn_bias=blocks, p=dropout)


def _aligned_bias(query: Tensor, mask: Tensor) -> Tensor:
    """Return the mask as the additive bias that xformers takes: rows aligned to 8 elements, expanded and not copied."""
    batch, heads, queries, _ = query.shape
    keys = mask.shape[1]
    bias = query.new_zeros(batch, 1, 1, math.ceil(keys / 8) * 8)[..., :keys]
    return bias.masked_fill_(~mask[:, None, None, :], -math.inf).expand(batch, heads, queries, keys)


def _chosen(query: Tensor, implementation: str | None) -> str | None:
    """Return the implementation that somebody named, or None for a free choice."""
    chosen = _override if implementation is None else known_name(implementation, IMPLEMENTATIONS, "attention")
    if chosen == "xformers" and not (query.is_cuda and _xformers_installed()):
        lacks = "the tensors are on " + query.device.type if _xformers_installed() else "it is not installed"
        raise VPPError(f"attention 'xformers' needs CUDA tensors and the xformers package; {lacks}. Use 'sdpa' here.")
    return chosen


def _takes_xformers(chosen: str | None, query: Tensor) -> bool:
    # torch.compile fuses torch's own attention; it would break its graph at xformers' dispatcher.
    free = chosen is None and not torch.compiler.is_compiling()
    return chosen == "xformers" or (free and query.is_cuda and _xformers_installed())


def _refuse_if_named(chosen: str | None, error: NotImplementedError) -> None:
    if chosen == "xformers":
        raise VPPError(f"xformers has no kernel for this attention; use 'sdpa', or name none. {error}") from error


@functools.cache
def _xformers_installed() -> bool:
    return importlib.util.find_spec("xformers") is not None


def _on_cuda() -> str:
    if not _xformers_installed():
        return f"{_TORCHS}: xformers is not installed ({install_command('all')})"
    fits, why = _xformers_library()
    own = "its own kernels" if fits else f"torch's flash and memory-efficient kernels alone, as {why}"
    here = "" if torch.cuda.is_available() else "; there is no CUDA device here"
    return f"xformers {version('xformers')}, with {own}; {_TORCHS} where it has none, and in compiled graphs{here}"


@functools.cache
def _xformers_library() -> tuple[bool, str]:
    """Return whether xformers' own library loads beside this torch, or else why not.

    Without it xformers hands on to torch's kernels, by the names that end in "-pt" in `xformers.info`.
    """
    spec = importlib.util.find_spec("xformers")
    assert spec is not None  # it is installed
    assert spec.submodule_search_locations is not None  # it is a package
    folder = Path(spec.submodule_search_locations[0])
    libraries = sorted(folder.glob("_C*"))
    if not libraries:
        return False, "it was built without its library"
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        built = json.loads((folder / "cpp_lib.json").read_text(encoding="utf-8"))["version"]["torch"]
        return False, f"its library, built for torch {built}, does not load beside {torch.__version__} ({error})"
    return True, ""


def _swap_axes(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange heads and tokens, in either direction."""
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _check_lengths(queries: int, query_lengths: Sequence[int], keys: int, key_lengths: Sequence[int]) -> None:
    if len(query_lengths) != len(key_lengths):
        raise VPPError(f"one key length per query length expected; got {len(query_lengths)} and {len(key_lengths)}.")
    for name, total, lengths in (("query", queries, query_lengths), ("key", keys, key_lengths)):
        if sum(lengths) != total or min(lengths, default=0) < 0:
            raise VPPError(
                f"{name}_lengths must be 0 or more and add up to {total} packed tokens; got {list(lengths)}."
            )


def _segments(lengths: Sequence[int]) -> Int[Tensor, " tokens"]:
    """Return for each packed token the number of its segment."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))


def _rows(lengths: Sequence[int], kept: Sequence[bool]) -> Int[Tensor, " rows"]:
    """Return where the tokens of the kept segments lie."""
    return torch.tensor(kept)[_segments(lengths)].nonzero()[:, 0]
