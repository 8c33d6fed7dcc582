"""What an attached host warns of, once each."""

import warnings

import torch

from vpp_plugins.attach.session import HostState
from vpp_plugins.errors import HalfPrecisionVPPWarning, UntrainedVPPWarning
from vpp_plugins.prompts import VPP

CALLER = 7
"""How many frames up the user's call of generate is; a forward's is two further, beyond torch's own."""


def warn(state: HostState, vpp: VPP, *, trained: bool) -> None:
    """Warn of untrained prompts, and, but under torch.compile, of training prompts whose steps are rounded away."""
    if not trained:
        _once(
            state,
            UntrainedVPPWarning,
            "the attached VPP is untrained, so it cannot help yet: load weights with load_vpp(model, folder) or "
            "attach_vpp(model, folder), or train it and set model.vpp.trained = True.",
        )
    compiling = torch.compiler.is_compiling()  # a look at every parameter would be as many guards
    if vpp.training and torch.is_grad_enabled() and not compiling and _learns_in_half(vpp):
        _once(
            state,
            HalfPrecisionVPPWarning,
            "VPP is being trained in bfloat16 or float16, in which steps of usual learning rates are rounded away, so "
            "that most of it would not learn: call model.vpp.float() before making the optimizer; the model itself may "
            "stay as it is. Only an optimizer that keeps float32 copies, as DeepSpeed's does, needs no change.",
        )


def _learns_in_half(vpp: VPP) -> bool:
    return any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in vpp.parameters())


def _once(state: HostState, category: type[Warning], text: str) -> None:
    if category in state.warned:
        return
    state.warned.add(category)
    warnings.warn(text, category, stacklevel=CALLER)
