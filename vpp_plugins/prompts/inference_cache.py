"""What inference computes from weights again and again: kept until a weight changes, never copied, pickled or saved."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")

SAMPLES = 8
"""How many numbers of each tensor are compared, evenly spaced, beside its identity, version and place in memory."""


class InferenceCache(Generic[Value]):
    """The last `limit` values made from one module's parameters and buffers.

    A change of the module forgets them all: another tensor, another dtype or device, a write. Writes through `.data`,
    which leave no trace in a tensor's version, are seen in a sample of its numbers.
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._seen: _Fingerprint | None = None

    def get(self, module: nn.Module, key: Hashable, make: Callable[[], Value]) -> Value | None:
        """Return the value for `key`, made where it is not there yet; None where the module has to run itself.

        That is: where gradients are on, under torch.compile, export, tracing, autocast or torch.distributed (sharded
        weights come and go), where the weights are not all ordinary tensors in the CPU's memory, and where something
        hangs on one of its modules: a hook, an offload.
        """
        if torch.compiler.is_compiling():  # export too; a compiler folds for itself
            return None
        seen = None if _is_watched() else _fingerprint(module)
        if seen is None:
            self.clear()
            return None
        if self._seen is None or not seen.equals(self._seen):
            self.clear()
            self._seen = seen
        if key not in self._values:
            with torch.inference_mode(False), torch.no_grad():  # usable outside of inference_mode later
                self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self.limit:
            self._values.popitem(last=False)
        return self._values[key]

    def clear(self) -> None:
        """Forget everything, and free its memory."""
        self._values.clear()
        self._seen = None

    def __reduce__(self) -> "tuple[type[InferenceCache[Value]], tuple[int]]":
        return type(self), (self.limit,)


class _Fingerprint:
    """What tells whether tensors are still the same; it holds the tensors, so that no other takes their identity."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.marks = [(tensor._version, tensor.data_ptr(), tensor.dtype) for tensor in tensors]
        self.sample = [torch.cat(views) for views in _sampled(tensors)]

    def equals(self, other: "_Fingerprint") -> bool:
        return (
            len(self.tensors) == len(other.tensors)
            and all(one is two for one, two in zip(self.tensors, other.tensors, strict=True))
            and self.marks == other.marks
            and all(torch.equal(one, two) for one, two in zip(self.sample, other.sample, strict=True))
        )


def _fingerprint(module: nn.Module) -> _Fingerprint | None:
    tensors: list[Tensor] = []
    for part in module.modules():
        if (
            part._forward_hooks
            or part._forward_pre_hooks
            or not part.__dict__.keys().isdisjoint(("forward", "_hf_hook"))
        ):
            return None
        tensors += [tensor for tensor in part._parameters.values() if tensor is not None]
        tensors += [tensor for tensor in part._buffers.values() if tensor is not None]
    return _Fingerprint(tensors) if all(map(_is_ordinary, tensors)) else None


def _is_ordinary(tensor: Tensor) -> bool:
    whole = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and whole and not tensor.is_inference()


def _is_watched() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.is_grad_enabled() or traced or distributed or torch.is_autocast_enabled("cpu")


def _sampled(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Return evenly spaced numbers of each tensor, those of one dtype together."""
    of_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if count := tensor.numel():
            step = -(-count // SAMPLES)
            view = tensor.detach().as_strided((-(-count // step),), (step,))
            of_dtype.setdefault(tensor.dtype, []).append(view)
    return list(of_dtype.values())
