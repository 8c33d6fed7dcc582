"""`vpp bake`: turn a global prompt into a step that needs no part of this library."""

from pathlib import Path
from typing import Annotated

import typer

from vpp_plugins.errors import VPPError


def bake(
    model: Annotated[str, typer.Option(help="pocket, smollm2, or a model's folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.")],
    vpp: Annotated[str | None, typer.Option(help="Prompts that save_vpp wrote for the model.")] = None,
    global_only: Annotated[bool, typer.Option(help="Leave a local prompt out.")] = False,
    score: Annotated[bool, typer.Option(help="Ask about the photographs, with the prompt and with it baked.")] = True,
) -> None:
    """Bake a trained global prompt into a small script.

    It is for vLLM, SGLang or llama.cpp, needs no part of this library, and lays the axes over 8-bit images before the
    host's image processor. Printed is what that changes on the committed photographs: how far the colours are off, and
    the answers.

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
