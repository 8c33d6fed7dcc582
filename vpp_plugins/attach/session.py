"""One forward or generate of an attached host: what its hooks read, and the hooks themselves.

The hooks are module-level functions that read a slot kept beside them on the hooked module, so an attached model
pickles and deep-copies. A stale copy of a hooked module (PEFT makes some) holds a slot of its own that is always empty.
"""

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vpp_plugins.attach.peft_compat import keep_prompts_whole
from vpp_plugins.attach.vocabulary import Whole
from vpp_plugins.attach.windows import Views
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import Backbone
from vpp_plugins.prompts import Prompts

SLOT = "_vpp_slot"
NAMES = "_vpp_argument_names"


class Slot:
    """The prompts of the running forward or generate; empty between runs."""

    def __init__(self, backbone: Backbone) -> None:
        self.layout = backbone.pixel_layout
        self.pixel_argument = backbone.pixel_argument
        self.clear()

    def clear(self) -> None:
        """Forget the last run."""
        self.prompts: Prompts = Prompts(None, None)
        self.token_id = -1
        self.rows = 1
        self.views = Views()
        self.host_call: Mapping[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "pixel_argument": self.pixel_argument}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self.clear()  # a copy that is made in the middle of a run is in none

    def in_use(self) -> bool:
        """Whether prompts are there to be read."""
        return self.prompts.features is not None or self.prompts.overlay is not None


def follow(state: "HostState", call: Mapping[str, Any]) -> None:
    """Take over the arguments of a forward within generate: beams and returned sequences repeat the images' rows."""
    slot = state.slot
    given = {name: slot.host_call[name] for name in state.backbone.image_arguments if name in slot.host_call}
    for name, pixels in given.items():
        now = call.get(name)
        if isinstance(pixels, Tensor) and isinstance(now, Tensor) and len(now) % len(pixels) == 0:
            slot.views.repeats = len(now) // len(pixels)
    if slot.views.repeats > 1:
        slot.host_call = {**slot.host_call, **call, **given}


class HostState:
    """What an attached host remembers beside its prompts."""

    def __init__(self, backbone: Backbone, encoders: tuple[str, ...]) -> None:
        self.backbone = backbone
        self.encoders = encoders
        """Paths of the vision encoders that get the overlay; none without a global prompt."""
        self.slot = Slot(backbone)
        self.host_rows: int | None = None
        """Rows of the vocabulary before it grew by the placeholder; None where a spare row was used."""
        self.whole_tables: list[Whole] = []
        """The grown vocabulary, while VPP is disabled and the host shows its first `host_rows` rows only."""
        self.disabled = 0
        self.attached = True
        self.warned: set[type[Warning]] = set()
        """What has been warned of."""
        self.callers: set[int] = set()
        """Threads within a call that has been checked."""
        self.lock = threading.RLock()
        self.late: dict[int, contextlib.ExitStack] = {}
        """Sessions that `inner_model` opened, by thread."""

    def abandon(self) -> None:
        """End this thread's late session, if an interrupt has left it open: torch calls no hook after one."""
        if self.late and not torch.compiler.is_compiling():
            stack = self.late.pop(threading.get_ident(), None)
            if stack is not None:
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
    rows = F.embedding(_feature_index(is_placeholder, slot.rows, len(features)).to(features.device), features)
    return torch.where(is_placeholder[..., None].to(output.device), rows.to(output), output)


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
        return None
    own = dict(zip(encoder.__dict__[NAMES], args, strict=False)) | kwargs
    name = slot.pixel_argument if slot.pixel_argument in kwargs else next(iter(own))
    pixels = slot.layout(own.pop(name), axes, slot.views.next(encoder), {**slot.host_call, **own})
    if name in kwargs:
        return args, {**kwargs, name: pixels}
    return (pixels, *args[1:]), kwargs


def install(embedding: nn.Module, encoders: Sequence[nn.Module], slot: Slot) -> None:
    """Hook the embedding and the encoders to a slot."""
    embedding.register_forward_hook(inject, with_kwargs=True)
    for encoder in encoders:
        encoder.register_forward_pre_hook(overlay, with_kwargs=True)
        # now, because torch.compile cannot trace a look at a signature
        encoder.__dict__[NAMES] = tuple(inspect.signature(type(encoder).forward).parameters)[1:]
    for module in (embedding, *encoders):
        module.__dict__[SLOT] = slot


def remove(host: nn.Module) -> None:
    """Take the hooks of this file off every module of the host."""
    for module in host.modules():
        for hooks, with_kwargs in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if hook in (inject, overlay)]:
                del hooks[key]
                with_kwargs.pop(key, None)
        module.__dict__.pop(SLOT, None)
        module.__dict__.pop(NAMES, None)


def heal(host: Any, state: HostState) -> None:
    """Move the hooks to the modules that PEFT or a resize may have put over, or in place of, the hooked ones."""
    if "peft_config" in host.__dict__ and not torch.compiler.is_compiling():
        keep_prompts_whole(host)  # PEFT tells of its first adapter, but not of more that are added later
    embedding = host.get_input_embeddings()
    encoders = [host.get_submodule(path) for path in state.encoders]
    if all(module.__dict__.get(SLOT) is state.slot for module in (embedding, *encoders)):
        return
    remove(host)
    install(embedding, encoders, state.slot)


@contextlib.contextmanager
def onloaded(vpp: nn.Module) -> Iterator[None]:
    """Have offloaded prompts at hand: accelerate brings each module's weights in for that module's own forward only."""
    offloaded = [module for module in vpp.modules() if "_hf_hook" in module.__dict__]
    with contextlib.ExitStack() as stack:
        for module in offloaded:
            from accelerate.utils import align_module_device

            stack.enter_context(align_module_device(module))
        yield
