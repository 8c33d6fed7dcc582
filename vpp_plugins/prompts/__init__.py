"""The two prompts as plain nn.Modules: no transformers, no host."""

from vpp_plugins.prompts.attention import attend, attend_ragged, attention_report
from vpp_plugins.prompts.axes import draw_axes
from vpp_plugins.prompts.draw import draw_overlay, draw_prompt
from vpp_plugins.prompts.global_vpp import CLIP_MEAN, CLIP_STD, RGB, GlobalVPP, Overlay
from vpp_plugins.prompts.local_vpp import LocalVPP
from vpp_plugins.prompts.resample import Window, outside_graphs
from vpp_plugins.prompts.vpp import TOKEN, VPP, Prompts, without_local_configuration

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "RGB",
    "TOKEN",
    "VPP",
    "GlobalVPP",
    "LocalVPP",
    "Overlay",
    "Prompts",
    "Window",
    "attend",
    "attend_ragged",
    "attention_report",
    "draw_axes",
    "draw_overlay",
    "draw_prompt",
    "outside_graphs",
    "without_local_configuration",
]
