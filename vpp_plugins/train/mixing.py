"""Mix data sets by weight, as fine-tuning needs it that should not forget what the model could before.

    mixed = Mixture({"grounding": boxes, "chat": talk}, weights={"grounding": 3, "chat": 1}, length=100_000)

The order is fixed by the seed alone. An item is found by its number, so a run is resumed by its step, and nothing needs
to be saved.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from vpp_plugins.errors import VPPError, nearest


@runtime_checkable
class Source(Protocol):
    """What has items by number: a data set, a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class Mixture(Dataset[Any]):
    """Items of several sources, in shares given by weights, evenly mixed.

    `length` is how many items one epoch has; None takes as many as all sources together. A source is shown as a whole,
    in random order, before any of its items comes again. Without weights, shares are as the sources' sizes.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        weights: Mapping[str, float] | None = None,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        self.sources = dict(sources)
        sizes = [len(source) for source in self.sources.values()]
        shares = _shares(self.sources, weights)
        self.order = mixture_order(sizes, shares, length=sum(sizes) if length is None else length, seed=seed)
        self._parts = list(self.sources.values())
        self._starts = np.array([0, *accumulate(sizes)])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        source, item = self.where(index)
        return self.sources[source][item]

    def where(self, index: int) -> tuple[str, int]:
        """Return the source of an item, and its number there."""
        source, item = source_of(self.order[index], self._starts)
        return list(self.sources)[source], item

    def counts(self) -> dict[str, int]:
        """Return how many items of each source one epoch has."""
        counts, _ = np.histogram(self.order, self._starts)
        return dict(zip(self.sources, counts.tolist(), strict=True))


def mixture_order(
    sizes: Sequence[int], weights: Sequence[float], *, length: int, seed: int = 0
) -> Int64[np.ndarray, " length"]:
    """Return which items come one after the other, as numbers in all sources one behind the other.

    Shares are exact up to one item. Each source's items come in passes, each a random order of all of them; every
    stretch of the result holds the sources in about their shares. Raises VPPError where a weight is below zero or not
    finite, where all are zero, and where a source with a weight is empty.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(weights, dtype=float)
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise VPPError(
            f"the weights of a mixture are numbers from 0 up, one above 0 at least, but are {list(weights)}."
        )
    if length < 1:
        raise VPPError(f"a mixture has at least one item, but its length is {length}.")
    counts = _apportion(shares / shares.sum(), length)
    starts = [0, *accumulate(sizes)]
    keys, items = [], []
    for start, size, count in zip(starts, sizes, counts, strict=False):
        if count and not size:
            raise VPPError("a source of the mixture has a weight but no items: leave it out, or give it weight 0.")
        passes = -(-count // size) if count else 0
        drawn = [rng.permutation(size) for _ in range(passes)]
        items.append(start + np.concatenate([np.empty(0, dtype=np.int64), *drawn])[:count])
        # one random place in each of `count` equal stretches: sources spread evenly, and keep their own order
        keys.append((np.arange(count) + rng.random(count)) / max(1, count))
    order: Int64[np.ndarray, " length"] = np.concatenate(items)[np.argsort(np.concatenate(keys), kind="stable")]
    return order.astype(np.int64)


def source_of(position: int | np.int64, starts: Int64[np.ndarray, " sources"]) -> tuple[int, int]:
    """Return the number of the source in which an item of `mixture_order` lies, and the item's number there."""
    source = int(np.searchsorted(starts, position, side="right")) - 1
    return source, int(position - starts[source])


def _apportion(shares: np.ndarray, length: int) -> list[int]:
    """Return whole numbers that add up to the length, by the largest remainders."""
    exact = shares * length
    counts = np.floor(exact).astype(int)
    most = np.argsort(counts - exact, kind="stable")[: length - counts.sum()]
    counts[most] += 1
    return [int(count) for count in counts]


def _shares(sources: Mapping[str, Source], weights: Mapping[str, float] | None) -> list[float]:
    if not sources:
        raise VPPError("a mixture needs at least one source, but there is none.")
    if weights is None:
        return [float(len(source)) for source in sources.values()]
    for name in weights:
        if name not in sources:
            raise VPPError(f"no source of the mixture is called '{name}'.{nearest(name, sources)}")
    missing = [name for name in sources if name not in weights]
    if missing:
        raise VPPError(f"the source '{missing[0]}' of the mixture has no weight: give every source one, or none any.")
    return [float(weights[name]) for name in sources]
