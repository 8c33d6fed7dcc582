"""Visual Position Prompts for any multimodal LLM: `attach_vpp(model)`.

Names are imported when they are first asked for, so that the command line starts without torch.
"""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpp_plugins.attach import attach_vpp, detach_vpp, is_attached, load_vpp, save_vpp, vpp_disabled, vpp_of
    from vpp_plugins.config import GlobalVPPConfig, LocalVPPConfig, VPPConfig
    from vpp_plugins.errors import HalfPrecisionVPPWarning, UntrainedVPPWarning, VPPError
    from vpp_plugins.ground import Grounder, Grounding
    from vpp_plugins.plugins import Backbone, hookimpl
    from vpp_plugins.processor import VPPProcessor
    from vpp_plugins.prompts import GlobalVPP, LocalVPP

__version__ = "0.1.0"

__all__ = [
    "Backbone",
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
    "vpp_of",
]

_HOMES = {
    "attach": ("attach_vpp", "detach_vpp", "is_attached", "load_vpp", "save_vpp", "vpp_disabled", "vpp_of"),
    "config": ("GlobalVPPConfig", "LocalVPPConfig", "VPPConfig"),
    "errors": ("HalfPrecisionVPPWarning", "UntrainedVPPWarning", "VPPError"),
    "ground": ("Grounder", "Grounding"),
    "plugins": ("Backbone", "hookimpl"),
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


_MOVED = {
    "checkpoint": "attach",
    "data.assets": "data.scenes",
    "data.photos": "data.scenes",
    "hookspecs": "plugins",
    "prompts.generators.detection_heads": "prompts.generators",
    "prompts.generators.weight_files": "files",
    "pocket.packing": "train.packing",
    "train.auxiliary_detection": "train.losses",
    "train.mixing": "train",
}
"""Module paths of 0.1.0 that were shown on pages, and the room that has their names now; they work until 0.2."""


class _MovedModules:
    """Finds a module under the path that it had in 0.1.0: the room's own module, with a warning."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        return ModuleSpec(name, self) if package == __name__ and old in _MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"{__name__}.{_MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} has moved: import from {new}.", DeprecationWarning, stacklevel=2)
        module = ModuleType(spec.name, f"Moved to {new}.")
        module.__getattr__ = lambda name: getattr(import_module(new), name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run."""


sys.meta_path.append(_MovedModules())
