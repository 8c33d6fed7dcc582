"""`load_pocket`: the models whose weights ship with the library, by name."""

import os
from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vpp_plugins.errors import VPPError, known_name
from vpp_plugins.pocket.smollm2 import DEFAULT_FOLDER
from vpp_plugins.pocket.smollm2_weights import SMOLLM2_FOLDER, load_smollm2
from vpp_plugins.pocket.weights import FOLDER, load_arm
from vpp_plugins.processor import VPPProcessor

NAMES = ("pocket", "smollm2")


def load_pocket(
    vpp: bool = True,
    folder: str | Path | None = None,
    *,
    name: str = "pocket",
    host: str | Path = DEFAULT_FOLDER,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor | VPPProcessor]:
    """Return a trained model that ships here, float32 on the CPU and in evaluation mode, with its processor.

    `vpp` chooses the arm: with Visual Position Prompts attached, or the twin that was trained alike without them.
    `name` is "pocket", which works offline as it is, or "smollm2", SmolLM2-135M behind the same tower: of it projector,
    LoRA and prompts ship, and `host` is the folder that `vpp fetch smollm2` wrote. `folder` holds the weights in place
    of those that ship.
    Raises VPPError where weights are missing or damaged, and for values of another kind.
    """
    if not isinstance(vpp, bool):
        raise VPPError(
            f"vpp must be True or False, but is {vpp!r}: a model is named by load_pocket(name=...), a folder by "
            "load_pocket(folder=...)."
        )
    for argument, value in (("folder", folder), ("host", host)):
        if not isinstance(value, str | os.PathLike) and (argument, value) != ("folder", None):
            raise VPPError(f"{argument} must be the path of a folder, but is {value!r}.")
    if known_name(name, NAMES, "model") == "smollm2":
        return load_smollm2(vpp, folder or SMOLLM2_FOLDER, host)
    return load_arm(vpp, folder or FOLDER)
