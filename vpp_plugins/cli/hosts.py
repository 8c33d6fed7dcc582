"""`vpp plugins`: which models take VPP here. `vpp convert`: bring other code's weights into transformers' layout."""

import enum
from pathlib import Path
from typing import Annotated

import typer


class DtypeName(enum.StrEnum):
    """The dtypes of written weights."""

    keep = "keep"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def plugins(
    models: Annotated[
        bool, typer.Option("--models", help="List what VPP can on each of transformers' models.")
    ] = False,
) -> None:
    """List the installed adapters and where each comes from; or, with --models, which of transformers' models take VPP.

    Example: vpp plugins --models
    """
    if models:
        _show_models()
        return
    from vpp_plugins.plugins import adapters, broken

    for name, plugin in sorted(adapters().items()):
        typer.echo(f"{name}\t{plugin.__name__}")
    for name, reason in broken().items():
        typer.echo(f"{name}\tleft out: {reason}")


def _show_models() -> None:
    from rich.console import Console
    from rich.table import Table
    from transformers import __version__

    from vpp_plugins.coverage import model_coverage, recorded_version

    rows = model_coverage()
    table = Table(box=None, pad_edge=False)
    for column in ("model type", "adapter", "pixels", "boxes", "local", "global", "note"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.model_type, row.adapter, row.layout, row.box_format, row.local_prompt, row.global_prompt, row.note
        )
    console = Console()
    console.print(table)
    takes = sum(row.local_prompt == "exact" for row in rows)
    console.print(
        f"{takes} of the {len(rows)} model types of transformers {__version__} take VPP. Tested on tiny random models with "
        f"transformers {recorded_version()}: exact is bit for bit. What an installed plugin claims shows in attach_vpp.",
        highlight=False,
    )


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of the checkpoint, as its own code saved it.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    dtype: Annotated[DtypeName, typer.Option(help="Dtype to write; keep is the checkpoint's.")] = DtypeName.keep,
) -> None:
    """Bring a checkpoint that was trained with VPP in other code into transformers' layout, with the prompts beside it.

    Known is VPP-LLaVA's own, of which nothing but the checkpoint is needed. It takes a gigabyte or two of memory; when
    interrupted, simply run it again.

    Example: vpp convert downloads/VPP-LLaVA-7b models/vpp-llava-7b
    """
    import torch

    from vpp_plugins.plugins import converter

    dtypes = {
        DtypeName.keep: None,
        DtypeName.bfloat16: torch.bfloat16,
        DtypeName.float16: torch.float16,
        DtypeName.float32: torch.float32,
    }
    converter(source)(source, target, dtypes[dtype])
    typer.echo(f"written to {target}: load it with from_pretrained, and then attach_vpp(model, '{target}')")
