"""Quick inference on a CPU, behind one function: `fold_resnet`. Nothing else here is for other rooms."""

from vpp_plugins.prompts.generators.cpu.folded import fold_resnet

__all__ = ["fold_resnet"]
