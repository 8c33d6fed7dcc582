"""A generator for tests: small, quick, and with nothing in it that could hide a mistake."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vpp_plugins.plugins import hookimpl, manager

NAME = "toy for tests"


class ToyGenerator(nn.Module):
    """Queries that attend once to an image's patches: every parameter and every pixel counts, in a millisecond."""

    def __init__(self, num_queries: int, width: int = 8) -> None:
        super().__init__()
        self.num_queries, self.width = num_queries, width
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.queries = nn.Parameter(torch.randn(num_queries, width))

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 height width"],
        pixel_mask: Bool[Tensor, "images height width"] | None = None,
    ) -> Float[Tensor, "images queries features"]:
        """Return the queries; the mask is of no use to it."""
        patches = self.patches(pixel_values).flatten(2).mT
        # one matrix per image: torch multiplies a shared one in another order where it needs no gradient
        queries = self.queries.expand(len(patches), -1, -1)
        attended: Tensor = (queries @ patches.mT).softmax(-1) @ patches + queries
        return attended


class _ToyPlugin:
    @hookimpl
    def vpp_generator(self, name: str, num_queries: int, options: Mapping[str, Any]) -> nn.Module | None:
        return ToyGenerator(num_queries, **options) if name == NAME else None


@contextmanager
def toy_generator() -> Iterator[str]:
    """Have the toy generator installed within the block; gives the name under which configurations find it."""
    if manager().has_plugin(NAME):
        yield NAME
        return
    manager().register(_ToyPlugin(), NAME)
    try:
        yield NAME
    finally:
        manager().unregister(name=NAME)
