"""The class that an attached host has: its own, with VPP's arguments in `forward`, `generate` and `save_pretrained`."""

import functools
import inspect
import os
import types
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins.attach import hooks, trainer_compat, vocabulary
from vpp_plugins.attach.card import CARD, write_card
from vpp_plugins.attach.checkpoint import CONFIG_FILE, read_into, write_vpp
from vpp_plugins.attach.hooks import HostState
from vpp_plugins.attach.peft_compat import check_found, keep_prompts_whole
from vpp_plugins.attach.validation import (
    check_call,
    check_embeddings,
    check_used,
    embedded_ids,
    is_draft,
    refuse_chunks,
    refuse_nested,
    warn_once,
)
from vpp_plugins.attach.windows import EncoderWindows, windows_of_calls
from vpp_plugins.errors import VPPError
from vpp_plugins.prompts import TOKEN, VPP


class AttachedHost:
    """Mixed into the host's class by `attached_class`; `self` is the host."""

    config: Any
    vpp: nn.Module
    _vpp_state: HostState
    _vpp_host_class: type
    _vpp_positional: Mapping[str, tuple[str, ...]]

    def forward(
        self, *args: Any, vpp_pixel_values: Tensor | None = None, vpp_tile_boxes: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the host's forward with the prompts in place.

        `vpp_pixel_values [images, 3, height, width]` are the detector's images in reading order of the placeholders,
        `vpp_tile_boxes [inputs, 4]` the part of its image that each of the vision encoder's inputs shows:
        see `tile_boxes.tile_boxes`.
        """
        self._vpp_state.abandon()
        if self._vpp_state.inside():
            refuse_nested(vpp_pixel_values)
            self._vpp_state.slot.follow(kwargs, self._vpp_state.backbone.image_arguments)
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        call = dict(zip(type(self)._vpp_positional["forward"], args, strict=False)) | kwargs
        with self._vpp_session(call, call.get("input_ids"), vpp_pixel_values, vpp_tile_boxes):
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def generate(
        self, *args: Any, vpp_pixel_values: Tensor | None = None, vpp_tile_boxes: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the host's generate in one session: prompts are computed once, and the placeholder is never an answer.

        The arguments are those of `forward`.
        """
        self._vpp_state.abandon()
        if self._vpp_state.inside():
            refuse_nested(vpp_pixel_values)
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        names = type(self)._vpp_positional["generate"]
        call, rest = dict(zip(names, args, strict=False)) | kwargs, args[len(names) :]
        if is_draft(call):
            refuse_draft(self)
            with self._vpp_state.entered():
                return super().generate(*rest, **call)  # type: ignore[misc]
        if call.get("assistant_model") is not None:
            refuse_draft(call["assistant_model"], None if "assistant_tokenizer" in call else active_vpp(self).token_id)
        if vpp_pixel_values is not None:
            refuse_chunks(self, call)
        processors = vocabulary.with_never(call.get("logits_processor"), self._vpp_never_ids())
        if processors is not None:
            call["logits_processor"] = processors
        with torch.no_grad(), self._vpp_session(call, embedded_ids(rest, call), vpp_pixel_values, vpp_tile_boxes):
            return super().generate(*rest, **call)  # type: ignore[misc]

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        """Add what `generate` gave to the host's own processors where the host loses it on the way, as Janus does."""
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        return vocabulary.with_never(processors, self._vpp_never_ids())

    def _vpp_never_ids(self) -> set[int]:
        """Return the tokens that generate must never answer: the placeholder, and those that an adapter names."""
        state, token_id = self._vpp_state, active_vpp(self).token_id
        return set() if state.disabled else {*state.backbone.never_ids, *([] if token_id is None else [token_id])}

    @contextmanager
    def _vpp_session(
        self, call: dict[str, Any], ids: Tensor | None, pixels: Tensor | None, tile_boxes: Tensor | None
    ) -> Iterator[None]:
        """Check the call, compute its prompts, and let the hooks see them until it ends."""
        state, vpp = self._vpp_state, active_vpp(self)
        if pixels is not None and pixels.shape[0] == 0:
            pixels = None
        if pixels is None:
            check_embeddings(self, vpp, call)
        compiling = torch.compiler.is_compiling()  # a lock breaks the graph; compiled calls of one model do not overlap
        if pixels is None and not state.has_images(call):
            check_call(state, vpp, call, ids, pixels, tile_boxes)
            with nullcontext() if compiling else state.entered():
                yield
            return
        with nullcontext() if compiling else state.claimed():
            # only now: another thread may have disabled VPP meanwhile
            check_call(state, vpp, call, ids, pixels, tile_boxes)
            try:
                if not state.disabled:
                    # in a step of training, prompts need not be trained yet
                    learns = self.training and torch.is_grad_enabled() and call.get("labels") is not None  # type: ignore[attr-defined]
                    warn_once(state, vpp, trained=self.vpp.trained or learns)  # type: ignore[arg-type]
                    _fill(self, call, ids, pixels, tile_boxes)
                yield
                check_used(state, call)
            finally:
                state.slot.clear()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the host's vocabulary; its rows are then the host's own, and stay when VPP is taken off.

        Raises VPPError where the placeholder would lose its row, and in a `vpp_disabled` block.
        """
        state, token_id = self._vpp_state, active_vpp(self).token_id
        if state.disabled:
            raise VPPError("the vocabulary cannot be resized inside a vpp_disabled block: leave the block first.")
        rows = vocabulary.rows_of(self)
        wanted = args[0] if args else kwargs.get("new_num_tokens")
        if wanted is not None and token_id is not None and wanted <= token_id < rows:
            raise VPPError(
                f"a vocabulary of {wanted} rows has none for {TOKEN}, whose id is {token_id}: resize to at least "
                f"{token_id + 1}, the length of the VPPProcessor's tokenizer, or call detach_vpp first."
            )
        embedding = super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]
        if vocabulary.rows_of(self) != rows:
            state.host_rows = None
        return embedding

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the bare host as it was, and the prompts beside it in their own files."""
        if active_vpp(self).is_empty and Path(save_directory, CONFIG_FILE).is_file():
            raise VPPError(
                f"this model is a control without prompts, and '{save_directory}' holds those of another, which would "
                "be loaded with it: give another folder."
            )
        if push_to_hub:
            raise VPPError(
                "save_pretrained(push_to_hub=True) would upload the host before its prompts are written: call "
                "model.push_to_hub(repo_id), which uploads both, or save_vpp(model, folder, push_to_hub=True)."
            )
        with vocabulary.narrowed(self, self._vpp_state.host_rows):
            tensors = dict(self.state_dict() if state_dict is None else state_dict)
            prompts = {
                name.removeprefix("vpp."): tensors.pop(name) for name in list(tensors) if name.startswith("vpp.")
            }
            host_only = _cut(self, tensors)
            super().save_pretrained(  # type: ignore[misc]
                save_directory, is_main_process=is_main_process, state_dict=host_only, **kwargs
            )
        vpp = active_vpp(self)
        if is_main_process and not vpp.is_empty:
            whole = prompts.keys() == vpp.state_dict().keys()  # not so where PEFT wraps the prompts
            write_vpp(vpp, save_directory, prompts if whole else None)
            trainer_compat.keep_rows(self)

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Upload as `push_to_hub` of transformers does, with our model card in place of its empty template."""
        path = Path(working_dir, CARD)
        if path.is_file() and "automatically generated" in path.read_text(encoding="utf-8"):
            path.unlink()
        write_card(Path(working_dir), self.config.name_or_path, family=self.config.model_type, name=repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Put on an adapter as transformers does, and load the prompts that stand beside it."""
        folder = trainer_compat.prompts_beside(self, args[0] if args else kwargs.get("peft_model_id"))
        info = super().load_adapter(*args, **kwargs)  # type: ignore[misc]
        place, name = (*args, *[None] * 2)[:2]
        check_found(info, place or kwargs.get("peft_model_id", ""), name or kwargs.get("adapter_name") or "default")
        if folder is not None:
            read_into(active_vpp(self), folder)
        return info

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's own; while PEFT saves an adapter, write the prompts that train beside it."""
        trainer_compat.keep(self)
        return super().state_dict(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load the prompts too, where Trainer or PEFT loads a checkpoint that has them beside it."""
        trainer_compat.complete(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    @property
    def peft_config(self) -> Any:
        """PEFT's configurations by name, where it has put its layers on the host."""
        try:
            return self.__dict__["peft_config"]
        except KeyError:
            raise AttributeError("peft_config") from None

    @peft_config.setter
    def peft_config(self, configs: Any) -> None:
        self.__dict__["peft_config"] = configs
        keep_prompts_whole(self)  # PEFT says so as soon as its layers are in place

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["peft_config"]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (type(self)._vpp_host_class,), self.__dict__.copy()


@functools.cache
def attached_class(host_class: type) -> type:
    """Return the host's class with VPP's arguments, under the same name: transformers keys caches and files by it."""
    body: dict[str, Any] = {
        "__module__": host_class.__module__,
        "__qualname__": host_class.__qualname__,
        "__doc__": host_class.__doc__,
        "_vpp_host_class": host_class,
    }
    methods = [name for name in ("forward", "generate") if name in dir(host_class)]
    body |= {name: _with_arguments(getattr(AttachedHost, name), getattr(host_class, name)) for name in methods}
    body["_vpp_positional"] = {name: _positional(getattr(host_class, name)) for name in methods}
    return types.new_class(host_class.__name__, (AttachedHost, host_class), exec_body=lambda names: names.update(body))


def active_vpp(host: Any) -> VPP:
    """Return the host's prompts, through the wrapper that PEFT's modules_to_save puts around them."""
    vpp = host.vpp
    if isinstance(vpp, VPP):
        return vpp
    active = [] if vpp.disable_adapters else vpp.active_adapters
    return vpp.modules_to_save[active[0]] if active else vpp.original_module


def every_vpp(host: Any) -> list[VPP]:
    """Return the host's prompts and the copies of them that PEFT's modules_to_save keeps."""
    return [module for module in host.vpp.modules() if isinstance(module, VPP)]


def refuse_draft(draft: Any, token_id: int | None = None) -> None:
    """Raise VPPError for a draft of assisted decoding that has prompts: transformers gives it the main model's inputs.

    And for one that embeds no placeholder, whose id the main model knows.
    """
    if any(isinstance(part, AttachedHost) and not part._vpp_state.disabled for part in draft.modules()):
        raise VPPError(
            "the draft (assistant_model) has VPP attached, but transformers gives it the main model's inputs, without "
            "those of its prompts: call detach_vpp(draft), or generate within vpp_disabled(draft)."
        )
    rows = vocabulary.rows_of(draft)
    if token_id is not None and token_id >= rows:
        raise VPPError(
            f"the draft (assistant_model) embeds {rows} ids, and {TOKEN}, which is {token_id}, is none of them: call "
            "draft.resize_token_embeddings(n), n being the main model's rows, or generate without a draft."
        )


def _rebuild(host_class: type) -> Any:
    return object.__new__(attached_class(host_class))


def _with_arguments(ours: Any, theirs: Any) -> Any:
    """Give our method the host's signature plus VPP's arguments: Trainer and generate choose inputs by signatures."""
    signature = inspect.signature(theirs)
    parameters = list(signature.parameters.values())
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in hooks.ARGUMENTS]
    last = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        last -= 1
    parameters[last:last] = extra

    @functools.wraps(theirs)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return method


def _positional(method: Any) -> tuple[str, ...]:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _fill(
    host: Any, call: dict[str, Any], ids: Tensor | None, pixels: Tensor | None, tile_boxes: Tensor | None
) -> None:
    """Compute the prompts of a call and put them where the hooks read them."""
    state, vpp = host._vpp_state, active_vpp(host)
    slot = state.slot
    hooks.update(host, state.encoders, slot)
    with onloaded(vpp):
        slot.prompts = host.vpp(pixels)
    slot.token_id = -1 if vpp.token_id is None else vpp.token_id
    slot.rows = 1 if ids is None else ids.shape[0]
    slot.host_call = call
    if tile_boxes is not None:
        given = [call[name] for name in state.backbone.image_arguments if call.get(name) is not None]
        slot.windows = EncoderWindows(windows_of_calls(tile_boxes, [len(images) for images in given]), given)


@contextmanager
def onloaded(vpp: nn.Module) -> Iterator[None]:
    """Have offloaded prompts at hand: accelerate brings each module's weights in for that module's own forward only."""
    offloaded = [module for module in vpp.modules() if "_hf_hook" in module.__dict__]
    with ExitStack() as stack:
        for module in offloaded:
            from accelerate.utils import align_module_device

            stack.enter_context(align_module_device(module))
        yield


def _cut(host: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut vocabulary tables that were gathered before `narrowed` took hold (Trainer passes its own state dict)."""
    rows = host._vpp_state.host_rows
    if rows is None:
        return tensors
    narrow = {name for name, value in host.state_dict().items() if value.shape[:1] == (rows,)}
    return {name: value[:rows] if name in narrow else value for name, value in tensors.items()}
