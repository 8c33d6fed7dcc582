"""The arithmetic that the local prompt cannot go below, and how fast this processor is at arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rows import interleaved
from vpp_plugins.prompts.generators import FrozenBatchNorm2d, build_detr
from vpp_plugins.prompts.generators.cpu import WINOGRAD_CHANNELS, Convolution


class Count:
    """What convolutions and linear layers read and write, and the operations that Winograd's way would save."""

    def __init__(self) -> None:
        self.flops, self.bytes, self.saved = 0, 0, 0.0

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook of a layer, in float32."""
        weights = sum(parameter.numel() for parameter in layer.parameters())
        self.bytes += 4 * (inputs[0].numel() + output.numel() + weights)
        if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) == ((3, 3), (1, 1)):
            suits = min(layer.in_channels, layer.out_channels) >= WINOGRAD_CHANNELS
            self.saved += suits * 0.75 * 2 * 9 * layer.in_channels * output.numel()


@contextmanager
def counted(net: nn.Module) -> Iterator[Count]:
    """Count what is done within; the operations are there at its end."""
    count = Count()
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count.add) for layer in layers]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        yield count
    for hook in hooks:
        hook.remove()
    count.flops = counter.get_total_flops()


def arithmetic(side: int, images: int, queries: int) -> dict[str, float]:
    """Count one forward of the detector: operations, and the bytes that its layers read and write in float32.

    `gflop` is of the direct algorithm, `gflop_winograd` with a quarter of them in the convolutions that suit Winograd.
    """
    with torch.device("meta"):
        detr, pixels = build_detr(num_queries=queries).eval(), torch.zeros(images, 3, side, side)
    with counted(detr) as count:
        detr(pixels)
    numbers = {"gflop": count.flops, "gflop_winograd": count.flops - count.saved, "gbyte": count.bytes}
    return {name: round(number / 1e9, 3) for name, number in numbers.items()}


def best_rate(dtype: torch.dtype = torch.float32) -> float:
    """Return GFLOP a second on these threads, of the quickest there is: a large product or convolution."""
    side, places = 1024, 40 * 40
    sizes = (places, side), (side, side), (1, side, 40, 40)
    left, right, image = (torch.randn(size, dtype=dtype) for size in sizes)
    source = nn.Conv2d(side, side, 1, bias=False, dtype=dtype)
    convolution = Convolution(source, FrozenBatchNorm2d(side).to(dtype), relu=False)
    last = image.contiguous(memory_format=torch.channels_last)
    times = interleaved({"product": lambda: left @ right, "convolution": lambda: convolution(last)}, rounds=15)
    return 2 * places * side**2 / 1e9 / min(*times["product"], *times["convolution"])
