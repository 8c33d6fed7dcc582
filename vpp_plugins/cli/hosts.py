"""`vpp plugins`: which models take VPP here. `vpp convert`: bring other code's weights into transformers' layout.

`vpp bake`: turn a global prompt into a step that needs no part of this library.
"""

import enum
from pathlib import Path
from typing import Annotated

import typer

from vpp_plugins.errors import VPPError


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


def bake(
    model: Annotated[str, typer.Option(help="pocket, or a model's folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.")],
    vpp: Annotated[str | None, typer.Option(help="Prompts that save_vpp wrote for the model.")] = None,
    global_only: Annotated[bool, typer.Option(help="Leave a local prompt out.")] = False,
    score: Annotated[bool, typer.Option(help="Ask about the photographs, with the prompt and with it baked.")] = True,
) -> None:
    """Bake a trained global prompt into a small script, for vLLM, SGLang or llama.cpp without this library.

    The script lays the axes over 8-bit images before the host's image processor. Printed is what that changes on the
    committed photographs: how far the colours are off, and the answers.

    Example: vpp bake --model models/llava-with-axes --out out/baked
    """
    from vpp_plugins.data.scenes import load_real_photos
    from vpp_plugins.evaluate import load_grounder, rows_of_scenes
    from vpp_plugins.export import bake as bake_prompt
    from vpp_plugins.export import drop_local_prompt, score_baked
    from vpp_plugins.processor import VPPProcessor

    grounder = load_grounder(model, vpp=vpp)
    host, processor = grounder.model, grounder.processor
    if not isinstance(processor, VPPProcessor):
        raise VPPError(
            f"'{model}' has no prompts: name those that save_vpp wrote (--vpp), so that there are axes to bake."
        )
    if global_only:
        processor = drop_local_prompt(host, processor)
    scenes = load_real_photos()
    baked = bake_prompt(host, processor, out, [scene.image for scene in scenes])
    typer.echo(
        f"{255 * baked.largest_difference:.2f}/255 from the prompt at most; {baked.clipped:,} colour values clipped in "
        f"{baked.images} images of {baked.size_hw[1]} x {baked.size_hw[0]}"
    )
    if score:
        asked = [(row.load_image(), row.expression, row.box) for row in rows_of_scenes(scenes)]
        scores = score_baked(host, processor, out, asked)
        typer.echo(
            f"mean IoU {scores.iou_attached:.3f} attached, {scores.iou_baked:.3f} baked; {scores.same_answers} of "
            f"{scores.questions} answers are the same"
        )
    typer.echo(f"written to {out}: its README.md says how to serve with it")
