"""The two prompts as plain nn.Modules: no transformers, no host."""

from vpp_plugins.prompts.axes import draw_axes
from vpp_plugins.prompts.global_vpp import GlobalVPP, Overlay
from vpp_plugins.prompts.local_vpp import LocalVPP
from vpp_plugins.prompts.vpp import VPP, Prompts

__all__ = ["VPP", "GlobalVPP", "LocalVPP", "Overlay", "Prompts", "draw_axes"]
