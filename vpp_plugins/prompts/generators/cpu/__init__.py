"""Fast kernels for inference on a CPU, behind the generators."""

from vpp_plugins.prompts.generators.cpu.folded import WINOGRAD_CHANNELS, Convolution, fold_resnet

__all__ = ["WINOGRAD_CHANNELS", "Convolution", "fold_resnet"]
