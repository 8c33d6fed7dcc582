"""Encodings kept: what frozen encoders make of an image is computed once, and read by every later step and run.

One file for each image and encoder, under a key of the encoder's weights and of all that it was given: so whatever
changes the pixels (processor settings, augmentation, axes) has files of its own. Files appear whole or not at all, so
several runs may share a folder, and a killed one goes on.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.utils.generic import ModelOutput

from vpp_plugins.attach import active_vpp, host_state, unwrap
from vpp_plugins.errors import VPPError
from vpp_plugins.files import sha256_of_tensors, whole_file

SAME = 1e-3
"""The first encoding that a run reads is computed too, and may differ by so much: of its largest number."""
SECONDS, SHA256 = "cpu_seconds", "sha256"
MOST_OF_IT = 0.5
"""A part of an encoder stands for it, where all that learns lies behind, if it has more than this share of it."""


class KeptEncodings:
    """The frozen encoders of one model, which read what was kept while `remove` has not been called.

        kept = KeptEncodings(model, "out/encodings")    # after freezing; before the first step
        kept.remove()

    Evaluation, and whatever else computes no gradients, is left alone. Images are encoded one by one, in evaluation
    mode: an encoder whose results depend on the batch in the last bit, as those of some libraries do, gives what it
    gives for a single image.

    Raises VPPError, with the reason, where the axes learn, and where neither an encoder nor the detector is frozen.
    """

    def __init__(self, model: nn.Module, folder: str | Path) -> None:
        host = unwrap(model)
        _check_axes(host)
        candidates = {path: host.get_submodule(path) for path in host_state(host).backbone.vision_encoders}
        local = active_vpp(host).local_vpp
        if local is not None:
            candidates["the local prompt's generator"] = local.generator
        frozen = {name: _frozen_part(module) for name, module in candidates.items()}
        layers = host.config.to_dict().get("vision_feature_layer")
        self.encoders = {
            name: KeptEncoder(module, Path(folder), layers) for name, module in frozen.items() if module is not None
        }
        if not self.encoders:
            raise VPPError(
                f"cache_encodings keeps what frozen encoders return, but all of them learn ({', '.join(candidates)}): "
                'freeze them (freeze = ["vision", "vpp.local"]), or leave cache_encodings out.'
            )

    def saved_seconds(self) -> float:
        """Return the CPU seconds that reading has saved so far."""
        return sum(encoder.saved_seconds for encoder in self.encoders.values())

    def remove(self) -> None:
        """Have the encoders compute again."""
        for encoder in self.encoders.values():
            encoder.remove()


class KeptEncoder:
    """One frozen module, whose `forward` reads what it returned for the same image before."""

    def __init__(self, module: nn.Module, folder: Path, layers: int | Sequence[int] | None = None) -> None:
        self.module, self.folder = module, folder / _digest_of_weights(module)
        self.layers = [layers] if isinstance(layers, int) else layers
        self.saved_seconds = 0.0
        self._compute = module.forward
        self._structure: Any = None
        self._places: list[int] = []  # of the output's tensors among those that are kept: some name one twice
        module.forward = self._forward

    def remove(self) -> None:
        """Have the module compute again."""
        self.module.__dict__.pop("forward", None)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._compute(*args, **kwargs)
        found = [self._one(*one) for one in _by_image(args, kwargs)]
        whole = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True)]
        return pytree.tree_unflatten([whole[place] for place in self._places], self._structure)

    def _one(self, args: Any, kwargs: Any) -> list[Tensor]:
        """Return one image's encoding, as a list of tensors."""
        path = self.folder / f"{_digest_of_call(args, kwargs)}.safetensors"
        kept = _read(path)
        if kept is None:
            return self._write(path, args, kwargs)
        if self._structure is None:
            _check_same(self._encode(args, kwargs)[0], kept[0], path)
        self.saved_seconds += kept[1]
        return kept[0]

    def _write(self, path: Path, args: Any, kwargs: Any) -> list[Tensor]:
        tensors, seconds = self._encode(args, kwargs)
        about = {SECONDS: f"{seconds:.6f}", SHA256: sha256_of_tensors(_named(tensors))}
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            save_file(_named(tensors), file.name, metadata=about)
        return tensors

    def _encode(self, args: Any, kwargs: Any) -> tuple[list[Tensor], float]:
        """Compute one image's encoding, and say how many CPU seconds that took."""
        started, training = time.process_time(), self.module.training
        with torch.no_grad():
            self.module.eval()
            output = self._compute(*args, **kwargs)
            self.module.train(training)
        tensors, self._structure = pytree.tree_flatten(_wanted(output, self.layers))
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise VPPError(
                f"cache_encodings keeps tensors, but {type(self.module).__name__} returns other things besides: leave "
                "it out for this model."
            )
        distinct = {id(tensor): tensor for tensor in tensors}
        self._places = [list(distinct).index(id(tensor)) for tensor in tensors]
        own = [tensor.clone(memory_format=torch.contiguous_format) for tensor in distinct.values()]  # some are views
        return own, time.process_time() - started


def _check_axes(host: Any) -> None:
    axes = active_vpp(host).global_vpp
    if axes is not None and any(parameter.requires_grad for parameter in axes.parameters()):
        raise VPPError(
            "cache_encodings keeps what encoders see, but the global prompt learns, and so changes it at every step: "
            'freeze it (freeze = ["vpp.global"]), or leave cache_encodings out.'
        )


def _frozen_part(encoder: nn.Module) -> nn.Module | None:
    """Return the encoder, or the child that is most of it, if nothing of that learns."""
    whole = _numbers(encoder)
    for module in (encoder, *encoder.children()):
        if _numbers(module) > MOST_OF_IT * whole and not any(p.requires_grad for p in module.parameters()):
            return module
    return None


def _numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _by_image(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[list[Any], dict[str, Any]]]:
    """Split a call into one for each image: tensors along their first dimension, packed patches by their grids."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if any(tensor.requires_grad for tensor in given):
        raise VPPError(
            "cache_encodings keeps what frozen encoders return, but what this one is given learns: freeze it too, or "
            "leave cache_encodings out."
        )
    grids = [value for value in given if value.ndim == 2 and value.shape[1] == 3 and not value.is_floating_point()]
    images = len(grids[0]) if grids else len(given[0])
    rows = grids[0].prod(1).tolist() if grids else [1] * images

    def part(value: Any, image: int) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        return value[image : image + 1] if len(value) == images else value.split(rows)[image]

    names = list(kwargs)
    return [([part(v, n) for v in args], {name: part(kwargs[name], n) for name in names}) for n in range(images)]


def _wanted(output: Any, layers: Sequence[int] | None) -> Any:
    """Leave out of a vision encoder's output what the host does not read: all layers but those that it takes."""
    if layers is None or not isinstance(output, ModelOutput) or output.get("hidden_states") is None:
        return output
    states = output["hidden_states"]
    taken = {layer % len(states) for layer in layers}
    nothing = states[min(taken)].new_zeros(len(states[min(taken)]), 0)
    kept = {"hidden_states": tuple(state if n in taken else nothing for n, state in enumerate(states))}
    if len(states) - 1 in taken:  # some read the last one by its own name
        kept["last_hidden_state"] = output["last_hidden_state"]
    return type(output)(**kept)


def _read(path: Path) -> tuple[list[Tensor], float] | None:
    """Return a kept encoding and the CPU seconds that it took, or None where there is none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = [file.get_tensor(str(number)) for number in range(len(file.keys()))]
        whole, seconds = about[SHA256] == sha256_of_tensors(_named(tensors)), float(about[SECONDS])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise VPPError(f"the encoding '{path}' is damaged: delete the file, it is computed again.")
    return tensors, seconds


def _check_same(computed: Sequence[Tensor], kept: Sequence[Tensor], path: Path) -> None:
    """Raise VPPError where an encoder no longer returns what it did, as after an update of a library."""
    for now, then in zip(computed, kept, strict=True):
        most = SAME * float(then.abs().max()) if then.numel() else 0.0
        if now.shape != then.shape or not torch.allclose(now, then.to(now), rtol=0, atol=most):
            raise VPPError(
                f"the encoder returns something else than was kept in '{path.parent}', though its weights are the same "
                "(another version of a library?): delete that folder."
            )


def _digest_of_weights(module: nn.Module) -> str:
    weights = dict([*module.named_parameters(), *module.named_buffers()])
    return hashlib.sha256(f"{type(module).__qualname__} {sha256_of_tensors(weights)}".encode()).hexdigest()[:16]


def _digest_of_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return a key of all that an encoder was given, and of the precision that it computes in."""
    given = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    device = next(iter(tensors.values())).device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    others = sorted((name, repr(value)) for name, value in given.items() if name not in tensors)
    return hashlib.sha256(f"{precision} {others} {sha256_of_tensors(tensors)}".encode()).hexdigest()[:32]


def _named(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name an encoding's tensors, for a file, by their place."""
    return {str(place): tensor for place, tensor in enumerate(tensors)}
