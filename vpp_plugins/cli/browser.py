"""`vpp app`: ask about own images in the browser. Not `app.py`: `vpp_plugins.cli.app` is the command line itself."""

from pathlib import Path
from typing import Annotated

import typer

from vpp_plugins.errors import named_extras


def app(
    model: Annotated[str, typer.Option(help="pocket, smollm2, or a model's folder or hub id.")] = "pocket",
    vpp: Annotated[str | None, typer.Option(help="Prompts that save_vpp wrote for the model.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; this machine alone unless named.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; the first free one from 7860 on unless named.", min=1, max=65535)
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the app as a folder for a hosting service instead of serving it.")
    ] = None,
) -> None:
    """Ask about your own images in the browser.

    The pocket model answers beside its twin, trained without VPP; any other model
    answers with its prompts on and off.

    Your model: vpp app --model Qwen/Qwen2.5-VL-7B-Instruct --vpp out/run/final

    To share: vpp app --export DIR writes a folder that a hosting service of Gradio apps takes as it is.
    """
    with named_extras("app"):
        from vpp_plugins import evaluate

        if export is None:
            evaluate.serve_app(model, vpp=vpp, host=host, port=port)
            return
        typer.echo(f"The app: {evaluate.export_app(export, model, vpp=vpp)}")
