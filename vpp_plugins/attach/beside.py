"""The local prompt beside the vision encoder: two CUDA streams that meet where the language model begins.

    model.vpp.two_streams = True

Most hosts look words up first, and then encode images before they read the embeddings. So the prompt's features go
into the embeddings on a second stream, and the first one waits for them when the vision encoder has been given all its
work. Where a host reads the embeddings before, the first stream waits for them there.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins.prompts import VPP

_PROPERTIES: tuple[Any, ...] = (Tensor.shape, Tensor.dtype, Tensor.device, Tensor.ndim)
WITHOUT_NUMBERS = {Tensor.dim, Tensor.size, *(asked.__get__ for asked in _PROPERTIES)}
"""What can be asked of a tensor before its numbers are there."""


class Unfinished(Tensor):
    """What a second stream is still making. Reading it, or writing to it, has the first stream wait.

    From then on it is a plain tensor. Seen are torch's own functions and methods, which all come by
    `__torch_function__`, and so whatever takes its address.
    """

    join: Callable[[], None]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call one of torch's functions; all but WITHOUT_NUMBERS read."""
        kwargs = kwargs or {}
        if function in WITHOUT_NUMBERS:
            return super().__torch_function__(function, types, args, kwargs)  # type: ignore[no-untyped-call]
        for tensor in _unfinished((*args, *kwargs.values())):
            tensor.join()
        return function(*args, **kwargs)


def _unfinished(arguments: Iterable[Any]) -> Iterator[Unfinished]:
    """Find those among a function's arguments, and in lists and tuples there, one by one: to join is to finish more."""
    for argument in arguments:
        if isinstance(argument, Unfinished):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _unfinished(argument)


class Beside:
    """A second stream of work on one device, for one call of a host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _second_of(device)
        self.joined = False
        """Whether the first stream has waited once, so that nothing is left to wait beside."""
        self._handed_over: list[Unfinished] = []

    @contextmanager
    def working(self, *read: Tensor) -> Iterator[None]:
        """Do what follows on the second stream, after all that the first one has been given; it reads these tensors."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield
        for tensor in read:
            tensor.record_stream(self.stream)  # their memory is free only when the second stream is done with it

    def hand_over(self, made: Tensor) -> Tensor:
        """Return what the second stream is making, to be read by anyone: who is too early has the first stream wait."""
        made.record_stream(torch.cuda.current_stream(self.device))
        return self._watched(made)

    def join(self) -> None:
        """Have the first stream wait for the second; what has been handed over is plain tensors then."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self._finish()

    def _watched(self, made: Tensor) -> Unfinished:
        watched = made.as_subclass(Unfinished)
        watched.join = self.join
        self._handed_over.append(watched)
        return watched

    def _finish(self) -> None:
        self.joined = True
        for tensor in self._handed_over:
            del tensor.join
            tensor.__class__ = Tensor  # type: ignore[assignment]  # as torch's own lazy parameters become others
        self._handed_over.clear()


def beside_encoder(host: Any, vpp: VPP, pixels: Tensor | None) -> Beside | None:
    """Return the second stream for a call with these images, or None where there is nothing to gain or to risk.

    That is: unless it is asked for, with gradients, while torch compiles or captures, on a CPU, where prompts and
    embeddings lie on different devices, with a fusion, and where a part of the host is compiled or has a `forward` of
    its own, as compiled and offloaded ones have. All CUDA graphs of torch's compiler share their memory, and must not
    run at the same time; and what it traces is not seen reading.
    """
    if not vpp.two_streams or pixels is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    local = vpp.local_vpp
    if local is None or local.fusion is not None:
        return None
    if any(part._compiled_call_impl is not None or "forward" in part.__dict__ for part in host.modules()):
        return None
    devices = {pixels.device, next(local.projector.parameters()).device, host.get_input_embeddings().weight.device}
    return second_stream(pixels.device) if len(devices) == 1 else None


def second_stream(device: torch.device) -> Beside | None:
    """Return a second stream on a device that has such."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return Beside(device)


@functools.cache
def _second_of(device: torch.device) -> Any:
    """Return the device's one second stream: torch keeps the memory that a stream has freed for that stream alone."""
    return torch.cuda.Stream(device)


def features_beside(vpp: nn.Module, pixels: Tensor, beside: Beside) -> Any:
    """Return the prompts of these images: the axes on this stream, since the encoder needs them, the rest beside."""
    with beside.working(pixels):
        features = vpp(pixels).features
    return vpp()._replace(features=features)
