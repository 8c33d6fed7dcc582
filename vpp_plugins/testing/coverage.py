"""Which of transformers' models of images and text take VPP: what the coverage test found for each model type."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("coverage.json")


@dataclass(frozen=True)
class Coverage:
    """What is known of VPP on one of transformers' model types."""

    model_type: str
    host: str
    """transformers' class."""
    adapter: str = ""
    """The adapter that claims it; empty where none does."""
    layout: str = ""
    """How its vision encoder arranges pixels; see `vpp_plugins.plugins.layouts`."""
    box_format: str = ""
    """How it is asked for boxes, and taught to write them; see `vpp_plugins.boxes`."""
    local_prompt: str = ""
    """"exact" where outputs equal, bit for bit, those of an unpatched host; "no"; "untested"."""
    global_prompt: str = ""
    """"yes" where the axes reach the encoder and gradients come back; "no"; "untested"."""
    note: str = ""
    """Why not, or what the bare host itself cannot do."""


def model_coverage() -> list[Coverage]:
    """Return a row for every model type that the installed transformers has for images and text.

    Nothing is built: rows are what the coverage test recorded on tiny models. A model type that it has not met, because
    transformers is newer, is left to the generic adapter, and marked as untested.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    known = recorded_coverage()
    return [
        known.get(model_type)
        or Coverage(model_type, host, "generic", local_prompt="untested", global_prompt="untested")
        for model_type, host in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
    ]


def recorded_coverage() -> dict[str, Coverage]:
    """Return the recorded rows by model type."""
    return {row["model_type"]: Coverage(**row) for row in _record()["models"]}


def recorded_version() -> str:
    """Return the version of transformers on which the coverage was recorded."""
    return _record()["transformers"]


def _record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))
