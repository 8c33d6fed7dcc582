"""What stands in for a second CUDA stream where there is no GPU: one that is as late as can be."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from vpp_plugins.attach.beside import Beside, Unfinished


class Late(Beside):
    """A second stream whose results are there at the very last moment, and are no numbers before."""

    def __init__(self) -> None:
        self.joined = False
        self._handed_over: list[Unfinished] = []
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.joined_with: list[int] = []
        """How many results each wait was for."""

    @contextmanager
    def working(self, *read: Tensor) -> Iterator[None]:
        yield

    def hand_over(self, made: Tensor) -> Tensor:
        early = torch.full_like(made, torch.nan)
        self.pending.append((early, made))
        return self._watched(early)

    def join(self) -> None:
        self.joined_with.append(len(self.pending))
        for early, made in self.pending:
            early.copy_(made)
        self.pending.clear()
        self._finish()


def late_streams(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    """Put late streams in the place of CUDA's; return those that will have been asked for."""
    made: list[Late] = []

    def second_stream(device: torch.device) -> Late:
        made.append(Late())
        return made[-1]

    monkeypatch.setattr("vpp_plugins.attach.beside.second_stream", second_stream)
    return made
