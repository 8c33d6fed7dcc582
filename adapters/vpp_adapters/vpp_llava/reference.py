"""The code that VPP-LLaVA was written in, "the reference": its settings, and what marks its checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpp_plugins import GlobalVPPConfig, LocalVPPConfig, VPPConfig, VPPError
from vpp_plugins.prompts import CLIP_MEAN, CLIP_STD

REFERENCE = VPPConfig(
    global_vpp=GlobalVPPConfig(interior="scaled", resample="nearest", image_mean=CLIP_MEAN, image_std=CLIP_STD),
    local_vpp=LocalVPPConfig(
        overlay_units="host",
        mask_padding=False,
        generator_options={
            "backbone": "resnet101",
            "width": 256,
            "feedforward": 2048,
            "encoder_layers": 6,
            "decoder_layers": 6,
        },
    ),
)
"""The settings of VPP-LLaVA's code; its checkpoints store none of them.

Unlike a new model's, the image inside the axes is dimmed by alpha too (`interior`), the axes reach the detector's
size by nearest index (`resample`) in the CLIP encoder's units (`overlay_units`), and the detector attends to padding.
"""


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json; raises VPPError where there is none that can be read."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise VPPError(f"no config.json in '{folder}': give the folder of a whole checkpoint.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VPPError(f"'{path}' is not valid JSON ({error}): download it again.") from None
    if not isinstance(values, dict):
        raise VPPError(f"'{path}' must hold a JSON object, but holds a {type(values).__name__}.")
    return values


def is_reference(settings: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of the LLaVA code that VPP-LLaVA was written in."""
    return "LlavaLlamaForCausalLM" in (settings.get("architectures") or ())
