"""What an attached host remembers beyond its prompts."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from vpp_plugins.attach.hooks import Slot
from vpp_plugins.attach.vocabulary import Whole
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import Backbone


@dataclass(eq=False)
class HostState:
    """The host as its adapter describes it, what was done to it, and who is calling it."""

    backbone: Backbone
    encoders: tuple[str, ...]
    """Paths of the vision encoders that get the overlay; none without a global prompt."""
    slot: Slot
    host_rows: int | None = None
    """Rows of the vocabulary before it grew by the placeholder; None where a spare row was used."""
    whole_tables: list[Whole] = field(default_factory=list)
    """The grown vocabulary, while VPP is disabled and the host shows its first `host_rows` rows only."""
    disabled: int = 0
    """How many `vpp_disabled` blocks are open."""
    attached: bool = True
    warned: set[type[Warning]] = field(default_factory=set)
    """What has been warned of."""
    lock: AbstractContextManager[Any] = field(default_factory=threading.RLock)
    callers: set[int] = field(default_factory=set)
    """Threads within a call that has been checked."""
    late: dict[int, contextlib.ExitStack] = field(default_factory=dict)
    """Sessions that a hook on the inner model has opened, by thread."""

    def has_images(self, call: Mapping[str, Any]) -> bool:
        """Whether a call's arguments bring the host images."""
        return any(call.get(name) is not None for name in self.backbone.image_arguments)

    def abandon(self) -> None:
        """End this thread's late session, if an interrupt has left it open: torch calls no hook after one."""
        if self.late and not torch.compiler.is_compiling():
            stack = self.late.pop(threading.get_ident(), None)
            if stack is not None:
                self.slot.clear()  # what has not ended well is not asked whether the prompts counted
                stack.close()

    def inside(self) -> bool:
        """Whether this thread is already within a call, as forward is when generate calls it."""
        if torch.compiler.is_compiling():  # which thread this is breaks the graph; compiled calls do not overlap
            return bool(self.callers)
        return threading.get_ident() in self.callers

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be within a call."""
        caller = threading.get_ident()
        self.callers.add(caller)
        try:
            yield
        finally:
            self.callers.discard(caller)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be within a call that uses the slot; another thread's waits for its end."""
        with self.lock, self.entered():
            yield

    def __getstate__(self) -> dict[str, Any]:
        if self.disabled:
            raise VPPError("a model cannot be copied or pickled inside a vpp_disabled block: leave the block first.")
        return {name: value for name, value in self.__dict__.items() if name not in ("lock", "callers", "late")}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self.lock, self.callers, self.late = threading.RLock(), set(), {}
