"""A plugin that brings a box format: LLaVA's boxes, asked for in other words."""

from dataclasses import replace

from vpp_plugins import hookimpl
from vpp_plugins.boxes import BoxCodec, codec


@hookimpl
def vpp_box_format(name: str) -> BoxCodec | None:
    """Return the format "my-llava"."""
    if name != "my-llava":
        return None
    return replace(codec("llava"), family=name, question="Give the box of {expr}.")
