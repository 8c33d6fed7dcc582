"""Calls of the host's inner model that go past the host's own forward: TRL's SFTTrainer makes them, to fuse the head.

Hooks on the inner model open the session that the forward would have opened. Our arguments only ever come so far where
the forward was passed by, because it takes them out.
"""

import contextlib
import threading
from typing import Any

import torch
from torch import nn

from vpp_plugins.attach.host import ARGUMENTS, open_session
from vpp_plugins.attach.validation import has_images

HOST = "_vpp_host"


def open_late(
    inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook on the inner model: open a session if none runs and the call has images."""
    host = inner.__dict__[HOST]
    state = host._vpp_state
    state.abandon()
    ours = [kwargs.get(name) for name in ARGUMENTS]
    running = state.inside() or state.slot.in_use()  # a compiled forward does not enter
    if all(value is None for value in ours) and (running or not has_images(state, kwargs)):
        return None
    call = {name: value for name, value in kwargs.items() if name not in ARGUMENTS}
    stack = contextlib.ExitStack()
    stack.enter_context(open_session(host, call, call.get("input_ids"), *ours))
    state.late[_caller()] = stack
    return args, call


def close(inner: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook on the inner model, called after an error too: end the session."""
    stack = inner.__dict__[HOST]._vpp_state.late.pop(_caller(), None)
    if stack is not None:
        stack.close()


def install(host: Any) -> None:
    """Hook the inner model, where the host has one."""
    inner = host.base_model
    if inner is host:
        return
    inner.register_forward_pre_hook(open_late, with_kwargs=True)
    inner.register_forward_hook(close, always_call=True)
    inner.__dict__[HOST] = host


def remove(host: nn.Module) -> None:
    """Take the hooks of this file off."""
    for module in host.modules():
        if module.__dict__.pop(HOST, None) is None:
            continue
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is open_late]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key in [key for key, hook in module._forward_hooks.items() if hook is close]:
            del module._forward_hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def _caller() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
