"""Visual Position Prompts for any multimodal LLM: `attach_vpp(model)`."""

from vpp_plugins.attach import attach_vpp, detach_vpp, is_attached, load_vpp, save_vpp, vpp_disabled
from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
from vpp_plugins.errors import UntrainedVPPWarning, VPPError
from vpp_plugins.ground import Grounder, Grounding
from vpp_plugins.hookspecs import hookimpl
from vpp_plugins.processor import VPPProcessor
from vpp_plugins.prompts import GlobalVPP, LocalVPP

__version__ = "0.1.0"

__all__ = [
    "GlobalVPP",
    "GlobalVPPConfig",
    "Grounder",
    "Grounding",
    "LocalVPP",
    "LocalVPPConfig",
    "UntrainedVPPWarning",
    "VPPConfig",
    "VPPError",
    "VPPProcessor",
    "attach_vpp",
    "detach_vpp",
    "hookimpl",
    "is_attached",
    "load_vpp",
    "save_vpp",
    "vpp_disabled",
]
