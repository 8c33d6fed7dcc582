"""`vpp convert`: bring other code's weights into transformers' layout."""

import enum
from pathlib import Path
from typing import Annotated

import typer

DtypeName = enum.StrEnum("DtypeName", "keep bfloat16 float16 float32")


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of the checkpoint, as its own code saved it.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    dtype: Annotated[DtypeName, typer.Option(help="Dtype to write; keep is the checkpoint's.")] = DtypeName.keep,
) -> None:
    """Bring other code's checkpoint into transformers' layout.

    The prompts that were trained with it come to lie beside it. Known is VPP-LLaVA's own, of which nothing but the
    checkpoint is needed. It takes a gigabyte or two of memory; when interrupted, simply run it again.

    Example: vpp convert downloads/VPP-LLaVA-7b models/vpp-llava-7b
    """
    import torch

    from vpp_plugins.plugins import converter

    converter(source)(source, target, None if dtype is DtypeName.keep else getattr(torch, dtype.value))
    typer.echo(f"written to {target}: load it with from_pretrained, and then attach_vpp(model, '{target}')")
