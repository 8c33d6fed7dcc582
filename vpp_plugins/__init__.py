"""Visual Position Prompts for any multimodal LLM: `attach_vpp(model)`.

Names are imported when they are first asked for, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpp_plugins.attach import attach_vpp, detach_vpp, is_attached, load_vpp, save_vpp, vpp_disabled
    from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
    from vpp_plugins.errors import HalfPrecisionVPPWarning, UntrainedVPPWarning, VPPError
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
    "HalfPrecisionVPPWarning",
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

_HOMES = {
    "attach": ("attach_vpp", "detach_vpp", "is_attached", "load_vpp", "save_vpp", "vpp_disabled"),
    "config": ("GlobalVPPConfig", "LocalVPPConfig", "VPPConfig"),
    "errors": ("HalfPrecisionVPPWarning", "UntrainedVPPWarning", "VPPError"),
    "ground": ("Grounder", "Grounding"),
    "hookspecs": ("hookimpl",),
    "processor": ("VPPProcessor",),
    "prompts": ("GlobalVPP", "LocalVPP"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vpp_plugins' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f"vpp_plugins.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
