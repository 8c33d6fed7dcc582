"""Where the time of a run goes: to its data, to parts of the model, or to writing."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vpp_plugins.attach.attach import host_state, is_attached, unwrap
from vpp_plugins.plugins import describe


@dataclass
class Stopwatch:
    """The seconds of each part; of parts within one another, a moment belongs to the innermost.

    On a GPU the work of a part is waited for where it ends, which is a few times in each call of the model.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    resumed: bool = False
    """Whether a run that had been interrupted goes on, so that this is the time of its last part alone."""
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what this block takes as a part."""
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def parts_of(self, model: nn.Module) -> Iterator[None]:
        """Within this block, tell the vision encoders and the prompts of a model, attached or not, from the rest of it.

        That is the "language model", as is all of a compiled model.
        """
        host = unwrap(model)
        attached = is_attached(host)
        backbone = host_state(host).backbone if attached else describe(host)
        parts = {"": "language model", **dict.fromkeys(backbone.vision_encoders, "vision encoder")}
        with ExitStack() as hooks:
            for path, name in (parts | ({"vpp": "prompts"} if attached else {})).items():
                for handle in self._hooks(host.get_submodule(path), name):
                    hooks.callback(handle.remove)
            yield

    @contextmanager
    def calls_of(self, owner: object, parts: Mapping[str, str]) -> Iterator[None]:
        """Within this block, count calls of an object's methods, by their names, as parts."""
        timed = {name: self.part(part)(getattr(owner, name)) for name, part in parts.items()}
        vars(owner).update(timed)
        try:
            yield
        finally:
            for name in timed:
                del vars(owner)[name]

    def sentence(self) -> str:
        """Return each part's share, the largest first: what bounds a run."""
        total = sum(self.seconds.values())
        parts = sorted(self.seconds.items(), key=lambda part: -part[1])
        shares = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in parts if total)
        since = " since it was resumed" if self.resumed else ""
        return f"Time: {total:.1f} s{since}" + (f", of which {shares}" if shares else "")

    def _hooks(self, module: nn.Module, name: str) -> tuple[Any, Any]:
        return (
            module.register_forward_pre_hook(lambda *call: self._begin(name), prepend=True),
            module.register_forward_hook(lambda *call: self._end(), always_call=True),
        )

    def _begin(self, name: str) -> None:
        if not torch.compiler.is_compiling():
            self._count()
            self._open.append(name)

    def _end(self) -> None:
        if not torch.compiler.is_compiling():
            self._count()
            self._open.pop()

    def _count(self) -> None:
        """Give the time since the last call to the part that is open."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
