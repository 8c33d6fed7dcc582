"""The local prompt beside the vision encoder: two CUDA streams that meet where the language model begins.

    model.vpp.two_streams = True

Hosts look words up first and encode pictures afterwards. So the prompt's features go into the embeddings on a second
stream, and the first one waits for them when the vision encoder has been given all its work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vpp_plugins.prompts.vpp import VPP


class Beside:
    """A second stream of work on one device, for one call of a host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = torch.cuda.Stream(device)
        self.encoded = False
        """Whether the vision encoder has been given its work, so that nothing is left to wait beside."""

    @contextmanager
    def working(self, *read: Tensor) -> Iterator[None]:
        """Do what follows on the second stream, after all that the first one has been given; it reads these tensors."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield
        for tensor in read:
            tensor.record_stream(self.stream)  # their memory is free only when the second stream is done with it

    def hand_over(self, made: Tensor) -> Tensor:
        """Return what the second stream is making; nobody may read it before `join`."""
        made.record_stream(torch.cuda.current_stream(self.device))
        return made

    def join(self) -> None:
        """Have the first stream wait for the second."""
        self.encoded = True
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


def beside_encoder(host: Any, vpp: VPP, pixels: Tensor | None) -> Beside | None:
    """Return the second stream for a call with these pictures, or None where there is nothing to gain or to risk.

    That is: unless it is asked for, with gradients, while torch compiles or captures, on a CPU, where prompts and
    embeddings lie on different devices, and with a fusion.
    """
    if not vpp.two_streams or pixels is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    local = vpp.local_vpp
    if local is None or local.fusion is not None:
        return None
    devices = {pixels.device, next(local.projector.parameters()).device, host.get_input_embeddings().weight.device}
    return second_stream(pixels.device) if len(devices) == 1 else None


def second_stream(device: torch.device) -> Beside | None:
    """Return a second stream on a device that has such."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return Beside(device)


def features_beside(vpp: nn.Module, pixels: Tensor, beside: Beside) -> Any:
    """Return the prompts of these pictures: the axes on this stream, since the encoder needs them, the rest beside."""
    with beside.working(pixels):
        features = vpp(pixels).features
    return vpp()._replace(features=features)
