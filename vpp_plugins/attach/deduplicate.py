"""Images that come several times in one batch, as with several questions about one image, are encoded once."""

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vpp_plugins.attach.attach import is_attached
from vpp_plugins.plugins import Backbone
from vpp_plugins.plugins.layouts import planes
from vpp_plugins.prompts import Prompts

MARKS = 64
"""How many numbers of an image are looked at before it is compared with another as a whole."""

Forward = Callable[..., Any]


@contextmanager
def encoded_once(host: nn.Module, backbone: Backbone) -> Iterator[None]:
    """Within this block, the host's vision encoders and prompts compute equal images of one call once.

    Equal images are recognised by their pixels, so whoever calls the host gets the same results as without. Images that
    reach an encoder in another layout than `planes` are encoded as always, and so are those of modules with a `forward`
    of their own, which accelerate's offloading sets, and those of a compiled forward.
    """
    paths = backbone.vision_encoders if backbone.pixel_layout is planes else ()
    prompts = ("vpp",) if is_attached(host) else ()
    with ExitStack() as stack:
        for module in map(host.get_submodule, (*paths, *prompts)):
            stack.enter_context(_replaced(module, "forward", _run_once))
        yield


@contextmanager
def prepared_once(image_processor: Any, backbone: Backbone) -> Iterator[None]:
    """Within this block, a host's image processor prepares an image object that comes several times in one call once.

    Not where images become anything but one input each: patches in one row, tiles.
    """
    whole = backbone.pixel_layout is planes and not backbone.tiled
    with _replaced(image_processor, "preprocess", _prepare_once) if whole else nullcontext():
        yield


def distinct_rows(rows: Float[Tensor, "rows ..."]) -> tuple[list[int], list[int]]:
    """Return the numbers of the rows that differ from all before, and for each row which of them it equals."""
    values = rows.flatten(1)
    first: list[int] = []
    index: list[int] = []
    alike: dict[tuple[float, ...], list[int]] = {}
    for row, marks in enumerate(values[:, :: max(1, values.shape[1] // MARKS)].tolist()):
        candidates = alike.setdefault(tuple(marks), [])
        found = next((number for number in candidates if torch.equal(rows[first[number]], rows[row])), None)
        if found is None:
            found = len(first)
            candidates.append(found)
            first.append(row)
        index.append(found)
    return first, index


@contextmanager
def _replaced(owner: Any, name: str, by: Callable[..., Any]) -> Iterator[None]:
    """Let `by(method, ...)` stand in for a method of one object, unless something stands in for it already."""
    own: type = type(owner)
    if name in owner.__dict__:
        yield
        return
    owner.__dict__[name] = types.MethodType(_standing_in(own, name, by), owner)
    try:
        yield
    finally:
        del owner.__dict__[name]


@functools.cache
def _standing_in(own: type, name: str, by: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands in, always the same for a class: torch.compile would compile anew for every other."""
    method = getattr(own, name)

    @functools.wraps(method)  # hosts look at signatures
    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        return by(functools.partial(method, self), *args, **kwargs)

    return once


def _run_once(forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Run a forward on the distinct images among its one tensor, and give each its result."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return forward(*args, **kwargs)
    given = [*args, *kwargs.values()]
    tensors = [value for value in given if isinstance(value, Tensor)]
    plain = all(value is None or isinstance(value, Tensor | bool | int | float | str) for value in given)
    if len(tensors) != 1 or not plain or tensors[0].ndim != 4:  # what else there is may belong to single images
        return forward(*args, **kwargs)
    pixels = tensors[0]
    first, index = distinct_rows(pixels)
    if len(first) == len(index):
        return forward(*args, **kwargs)
    distinct = pixels[first]
    output = forward(
        *(distinct if value is pixels else value for value in args),
        **{name: distinct if value is pixels else value for name, value in kwargs.items()},
    )
    try:
        return _repeated(output, len(first), torch.tensor(index, device=pixels.device))
    except _NotByImageError:
        return forward(*args, **kwargs)


def _prepare_once(preprocess: Callable[..., Any], images: Any, *args: Any, **kwargs: Any) -> Any:
    """Prepare the distinct objects among images, and give each place its own."""
    if not isinstance(images, list | tuple):
        return preprocess(images, *args, **kwargs)
    flat = [image for part in images for image in (part if isinstance(part, list | tuple) else [part])]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(map(id, flat)))}
    if len(numbers) == len(flat):
        return preprocess(images, *args, **kwargs)
    distinct = list({id(image): image for image in flat}.values())
    try:
        prepared = preprocess(distinct, *args, **kwargs)
        index = torch.tensor([numbers[id(image)] for image in flat])
        prepared.update({name: _repeated(value, len(distinct), index) for name, value in prepared.items()})
    except _NotByImageError:
        return preprocess(images, *args, **kwargs)
    return prepared


class _NotByImageError(Exception):
    """An output that does not have a row for each image."""


def _repeated(output: Any, images: int, index: Int[Tensor, " rows"]) -> Any:
    """Return the output of a module with its rows, one per image, put where `index` says."""
    if isinstance(output, Tensor):
        if output.ndim == 0 or len(output) != images:
            raise _NotByImageError
        return output.index_select(0, index.to(output.device))
    if isinstance(output, Prompts):
        if output.features is None:
            return output
        rows = _repeated(output.features.unflatten(0, (images, -1)), images, index)
        return output._replace(features=rows.flatten(0, 1))
    if isinstance(output, Mapping):  # transformers' outputs too
        return type(output)(**{name: _repeated(value, images, index) for name, value in output.items()})
    if type(output) is tuple:  # of layers; a list might be of images
        return tuple(_repeated(value, images, index) for value in output)
    if output is None:
        return None
    raise _NotByImageError
