"""The hooks of an attached host, the slot in which they find the prompts of a running call, and who is calling.

The hooks are module-level functions that read a slot kept with them on the hooked module, so an attached model pickles
and deep-copies. A stale copy of a hooked module (PEFT makes some) holds a slot of its own that is always empty.
"""

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vpp_plugins.attach.peft_compat import keep_prompts_whole
from vpp_plugins.attach.vocabulary import Whole
from vpp_plugins.attach.windows import EncoderWindows
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import Backbone, PixelLayout
from vpp_plugins.prompts import Prompts

SLOT = "_vpp_slot"
NAMES = "_vpp_argument_names"
HOST = "_vpp_host"
ARGUMENTS = ("vpp_pixel_values", "vpp_tile_boxes")
"""What VPP adds to the arguments of a host's forward and generate."""


@dataclass(eq=False)
class Slot:
    """The prompts of the running forward or generate; empty between runs."""

    layout: PixelLayout
    pixel_argument: str
    owner: "HostState | None" = None
    """Of the host whose modules look here; a copy of a hooked module, such as PEFT makes, has none."""

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the last run."""
        self.prompts: Prompts = Prompts(None, None)
        self.token_id = -1
        self.rows = 1
        self.repeats = 1
        """How often generate repeats each row of the images, for beams and returned sequences."""
        self.windows: EncoderWindows | None = None
        """What the encoders' inputs show; None is whole images."""
        self.host_call: Mapping[str, Any] = {}
        self.placed: Tensor | bool = False
        """How many features the embedding has put in at a time, at most; True where torch.compile counts none."""
        self.overlaid = False
        """Whether a vision encoder got the overlay."""

    def __reduce__(self) -> Any:
        return Slot, (self.layout, self.pixel_argument)  # a copy that is made in the middle of a run is in none

    def in_use(self) -> bool:
        """Whether prompts are there to be read."""
        return self.prompts.features is not None or self.prompts.overlay is not None

    def follow(self, call: Mapping[str, Any], image_arguments: Sequence[str]) -> None:
        """Take over the arguments of a forward within generate, which may repeat the images' rows."""
        given = {name: self.host_call[name] for name in image_arguments if name in self.host_call}
        for name, pixels in given.items():
            now = call.get(name)
            if isinstance(pixels, Tensor) and isinstance(now, Tensor) and len(now) % len(pixels) == 0:
                self.repeats = len(now) // len(pixels)
        if self.repeats > 1:
            self.host_call = {**self.host_call, **call, **given}


@dataclass(eq=False)
class HostState:
    """What an attached host remembers: its adapter's description, what was done to it, and who is calling it."""

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
    pixel_units: tuple[float, ...] | None = None
    """What its VPPProcessor makes of 8-bit pixels, see `pixel_units`, where a global prompt is laid over them."""
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


def inject(
    embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Float[Tensor, "..."]
) -> Float[Tensor, "..."] | None:
    """Forward hook on the input embedding: put the local prompt's features where the placeholder ids stand."""
    slot: Slot = embedding.__dict__[SLOT]
    features = slot.prompts.features
    if features is None:
        return None
    ids = args[0] if args else next(iter(kwargs.values()))
    # other look-ups pass through the same table: scalar placeholders, codebook ids, the single ids of decoding
    if ids.ndim != 2 or ids.is_floating_point() or ids.shape[0] % slot.rows or ids.shape[1] == 1:
        return None
    is_placeholder = ids == slot.token_id
    slot.placed = _most_placed(slot, is_placeholder)
    rows = F.embedding(_feature_index(is_placeholder, slot.rows, len(features)).to(features.device), features)
    return torch.where(is_placeholder[..., None].to(output.device), rows.to(output), output)


def _most_placed(slot: Slot, is_placeholder: Bool[Tensor, "batch length"]) -> Tensor | bool:
    """Return what `Slot.placed` becomes; on the device, so that nothing waits."""
    if torch.compiler.is_compiling():
        return True
    placed = is_placeholder.sum() // (len(is_placeholder) // slot.rows)
    return torch.maximum(placed, slot.placed) if isinstance(slot.placed, Tensor) else placed


def _feature_index(
    is_placeholder: Bool[Tensor, "batch length"], prompts: int, count: int
) -> Int[Tensor, "batch length"]:
    """Return which feature each placeholder takes, in reading order over the prompts.

    Beams and several returned sequences repeat each of the `prompts` rows next to itself; the repeats share the
    features of one.
    """
    repeats = is_placeholder.shape[0] // prompts
    per_prompt = is_placeholder[::repeats].sum(1)
    first = (per_prompt.cumsum(0) - per_prompt).repeat_interleave(repeats)
    return (first[:, None] + is_placeholder.long().cumsum(1) - 1).clamp(0, count - 1)


def overlay(
    encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook on a vision encoder: lay the global prompt over its pixels."""
    slot: Slot = encoder.__dict__[SLOT]
    axes = slot.prompts.overlay
    if axes is None:
        _refuse_alone(slot.owner)
        return None
    own = dict(zip(encoder.__dict__[NAMES], args, strict=False)) | kwargs
    name = slot.pixel_argument if slot.pixel_argument in kwargs else next(iter(own))
    windows = None if slot.windows is None else slot.windows.next(encoder, slot.repeats)
    slot.overlaid = True
    pixels = slot.layout(own.pop(name), axes, windows, {**slot.host_call, **own})
    return (args, {**kwargs, name: pixels}) if name in kwargs else ((pixels, *args[1:]), kwargs)


def _refuse_alone(state: HostState | None) -> None:
    """Raise VPPError where a vision encoder runs outside of every call, as by `get_image_features`."""
    if state is not None and state.attached and not state.disabled and not state.inside():
        raise VPPError(
            "the vision encoder was called by itself, where the global prompt does not count: call the model's forward "
            "or generate, or, for features of the bare host, stay within vpp_disabled(model)."
        )


def open_session(
    inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook on the host's inner model: open a session where the host's own forward was passed by.

    TRL's SFTTrainer does so, to fuse the head. Our arguments only ever come so far then, because the forward takes them
    out.
    """
    host = inner.__dict__[HOST]
    state = host._vpp_state
    state.abandon()
    ours = [kwargs.get(name) for name in ARGUMENTS]
    running = state.inside() or state.slot.in_use()  # a compiled forward does not enter
    if all(value is None for value in ours) and (running or not state.has_images(kwargs)):
        return None
    call = {name: value for name, value in kwargs.items() if name not in ARGUMENTS}
    stack = contextlib.ExitStack()
    stack.enter_context(host._vpp_session(call, call.get("input_ids"), *ours))
    state.late[_caller()] = stack
    return args, call


def close_session(inner: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook on the inner model, called after an error too: end the session that it has opened."""
    state = inner.__dict__[HOST]._vpp_state
    stack = state.late.pop(_caller(), None)
    if stack is not None:
        if output is None:  # an error
            state.slot.clear()
        stack.close()


def _caller() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def install(embedding: nn.Module, encoders: Sequence[nn.Module], slot: Slot) -> None:
    """Hook the embedding and the encoders to a slot."""
    embedding.register_forward_hook(inject, with_kwargs=True)
    for encoder in encoders:
        encoder.register_forward_pre_hook(overlay, with_kwargs=True)
        # now, because torch.compile cannot trace a look at a signature
        encoder.__dict__[NAMES] = tuple(inspect.signature(type(encoder).forward).parameters)[1:]
    for module in (embedding, *encoders):
        module.__dict__[SLOT] = slot


def install_inner(host: Any) -> None:
    """Hook the inner model, where the host has one."""
    inner = host.base_model
    if inner is host:
        return
    inner.register_forward_pre_hook(open_session, with_kwargs=True)
    inner.register_forward_hook(close_session, always_call=True)
    inner.__dict__[HOST] = host


def remove(host: nn.Module) -> None:
    """Take the hooks of this file off every module of the host."""
    for module in host.modules():
        for hooks, settings in (
            (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
            (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
        ):
            for key in [key for key, hook in hooks.items() if hook in (inject, overlay, open_session, close_session)]:
                for where in (hooks, *settings):
                    where.pop(key, None)
        for name in (SLOT, NAMES, HOST):
            module.__dict__.pop(name, None)


def update(host: Any, encoder_paths: Sequence[str], slot: Slot) -> None:
    """Move the hooks to the modules that PEFT or a resize may have put over, or in place of, the hooked ones."""
    if "peft_config" in host.__dict__ and not torch.compiler.is_compiling():
        keep_prompts_whole(host)  # PEFT announces its first adapter, but none that are added later
    embedding, encoders = host.get_input_embeddings(), [host.get_submodule(path) for path in encoder_paths]
    slot.owner = host._vpp_state
    if all(module.__dict__.get(SLOT) is slot for module in (embedding, *encoders)):
        return
    remove(host)
    install(embedding, encoders, slot)
    install_inner(host)
