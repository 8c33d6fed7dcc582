"""An unpatched host that does what VPP does to an attached one, by the plainest means: what the attached must equal.

Every placeholder of every image becomes a text id of its own, and a hook on the embedding gives each of these ids its
feature; a hook on the vision encoder lays the axes over the pixels. Which beam, cache or chunk an id turns up in makes
no difference, so the reference shares none of the attached host's bookkeeping.
"""

import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins.attach import to_windows, vocabulary
from vpp_plugins.errors import VPPError
from vpp_plugins.plugins import Backbone
from vpp_plugins.prompts import Prompts, Window


class ReferenceHost:
    """`model` is a copy of the bare host, which is hooked here; `spare` are ids that mean nothing to it."""

    def __init__(
        self, model: Any, prompts: Prompts, backbone: Backbone, inputs: Mapping[str, Any], spare: Tensor, rows: int
    ) -> None:
        if rows > vocabulary.rows_of(model):
            vocabulary.grow(model, rows)  # where the attached one's has grown by the placeholder
        self.model, self.prompts, self.backbone, self.spare = model, prompts, backbone, spare
        self.inputs, self.windows = inputs, _windows(inputs, backbone.image_arguments)
        self.laid: list[tuple[str, Tensor, Tensor]] = []
        """Of each call of a vision encoder, in order: its path, and its pixels before and after the axes."""
        if prompts.features is not None:
            model.get_input_embeddings().register_forward_hook(self._embed, with_kwargs=True)
        self.call: Mapping[str, Any] = inputs
        """What the model's own forward got last: beams repeat its rows, in hosts that encode images there."""
        model.register_forward_pre_hook(self._note, with_kwargs=True)
        if prompts.overlay is not None:
            for path in backbone.vision_encoders:
                model.get_submodule(path).register_forward_pre_hook(
                    functools.partial(self._lay, path), with_kwargs=True
                )

    def _embed(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        ids = args[0] if args else next(iter(kwargs.values()))
        if self.prompts.features is None or ids.ndim != 2 or ids.is_floating_point():
            return output
        output = output.clone()
        for token_id, feature in zip(self.spare.tolist(), self.prompts.features, strict=True):
            output[ids == token_id] = feature.to(output)
        return output

    def _note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = {**self.inputs, **{name: value for name, value in kwargs.items() if value is not None}}

    def _repeated(self, windows: Sequence[Window], view: int) -> Sequence[Window]:
        given = [name for name in self.backbone.image_arguments if self.inputs.get(name) is not None][view]
        rows, now = len(self.inputs[given]), len(self.call[given])
        if now == rows or (self.inputs[given].ndim == 4 and rows == 1 < len(windows)):  # a strip is encoded once
            return windows
        each = len(windows) // rows
        if not each:
            raise VPPError("the windows of patches cannot be told apart where generate repeats the images.")
        per_row = [windows[first : first + each] for first in range(0, len(windows), each)]
        return [window for row in per_row for _ in range(now // rows) for window in row]

    def _lay(
        self, path: str, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(inspect.signature(type(encoder).forward).parameters)[1:]
        call = dict(zip(names, args, strict=False)) | kwargs
        name = self.backbone.pixel_argument if self.backbone.pixel_argument in kwargs else next(iter(call))
        before, calls = call.pop(name), sum(path == earlier for earlier, _, _ in self.laid)
        assert self.prompts.overlay is not None
        windows = self.windows[calls % len(self.windows)]
        repeated = windows and self._repeated(windows, calls % len(self.windows))
        after = self.backbone.pixel_layout(before, self.prompts.overlay, repeated, {**self.call, **call})
        self.laid.append((path, before, after))
        return (args, kwargs | {name: after}) if name in kwargs else ((after, *args[1:]), kwargs)


def _windows(inputs: Mapping[str, Any], image_arguments: Sequence[str]) -> list[Sequence[Window] | None]:
    """Return the windows of an encoder's first call, and of further ones where the host encodes several arguments."""
    boxes = inputs.get("vpp_tile_boxes")
    if boxes is None:
        return [None]
    windows = to_windows(boxes)
    counts = [len(inputs[name]) for name in image_arguments if inputs.get(name) is not None]
    if sum(counts) != len(windows):
        return [windows]
    starts = list(itertools.accumulate(counts, initial=0))
    return [windows[start:stop] for start, stop in itertools.pairwise(starts)]


def spare_ids(model: Any, used: Sequence[Tensor], count: int) -> Tensor:
    """Return the `count` highest ids of the vocabulary that no input and no setting of the model uses."""
    taken = _numbers(model.config.to_dict()).union(*(set(ids.unique().tolist()) for ids in used))
    free = [i for i in range(vocabulary.rows_of(model)) if i not in taken]
    if len(free) < count:
        raise AssertionError(
            f"the comparison needs {count} token ids that mean nothing to the model, but only {len(free)} of its "
            f"{vocabulary.rows_of(model)} are free: give the tiny model a larger vocabulary"
        )
    return torch.tensor(free[len(free) - count :], dtype=torch.long)


@torch.no_grad()
def give_row(model: Any, token_id: int, spare: Tensor) -> None:
    """Make the spare ids look like the placeholder in every other table that the host looks ids up in.

    Some hosts have one table per layer (Gemma 3n). To be done to both sides of a comparison: where a table has nothing
    to do with token ids, it is then wrong in both.
    """
    tokens = model.get_input_embeddings().weight
    highest = max(token_id, *spare.tolist())
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings > highest and module.weight is not tokens:
            module.weight[spare] = module.weight[token_id].clone().clone()


def _numbers(settings: Any) -> set[int]:
    """Return every whole number in nested settings: some of them are token ids."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        return set().union(*map(_numbers, settings))
    return {settings} if isinstance(settings, int) else set()
