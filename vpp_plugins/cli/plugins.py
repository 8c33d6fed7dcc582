"""`vpp plugins`: the adapters here, which attention runs, and which models take VPP."""

from typing import Annotated

import typer


def plugins(
    models: Annotated[
        bool, typer.Option("--models", help="List what VPP can on each of transformers' models.")
    ] = False,
) -> None:
    """List adapters, generators, or models.

    The installed adapters and the local prompt's generators, and where each comes from, and which attention the
    generators run; or, with --models, transformers' models.

    Example: vpp plugins --models
    """
    if models:
        _show_models()
        return
    from vpp_plugins.plugins import adapters, broken, generators
    from vpp_plugins.prompts import attention_report

    for name, plugin in sorted(adapters().items()):
        typer.echo(f"{name}\t{plugin.__name__}")
    for name, plugin_name in generators().items():
        typer.echo(f"{name}\ta generator of the local prompt, from {plugin_name}")
    for name, reason in broken().items():
        typer.echo(f"{name}\tleft out: {reason}")
    for name, reason in attention_report().items():
        typer.echo(f"{name}\t{reason}")


def _show_models() -> None:
    from rich.console import Console
    from rich.table import Table
    from transformers import __version__

    from vpp_plugins.testing import model_coverage, recorded_version

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
        f"{takes} of the {len(rows)} model types of transformers {__version__} take VPP. Tested on tiny random models "
        f"with transformers {recorded_version()}: exact is bit for bit. Other adapters show in attach_vpp only.",
        highlight=False,
    )
