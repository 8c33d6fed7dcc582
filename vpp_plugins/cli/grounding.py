"""`vpp ground` and `vpp demo`: the models at work."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from vpp_plugins.errors import VPPError


def ground(
    image: Annotated[Path, typer.Option(help="The image: JPEG, PNG, WebP, ...", show_default=False)],
    expr: Annotated[str, typer.Option(help='What to find, such as "the leftmost kettle".', show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Also write the image with the box drawn on it.")] = None,
    without_vpp: Annotated[bool, typer.Option(help="Ask the twin that was trained without VPP.")] = False,
) -> None:
    """Find what an expression names in an image, with the pocket model; prints JSON.

    Example: vpp ground --image photo.jpg --expr "the dog" --out boxed.png
    """
    from vpp_plugins.images import load_image

    loaded_image = load_image(image)  # before the model: a bad image fails at once
    if out is not None:
        _check_writable(out)
    from vpp_plugins.ground import Grounder
    from vpp_plugins.pocket import load_pocket

    model, processor = load_pocket(vpp=not without_vpp)
    grounding = Grounder(model, processor)(loaded_image, expr)
    if out is not None:
        grounding.draw().save(out)
    typer.echo(
        json.dumps(
            {
                "image": str(image),
                "width": loaded_image.width,
                "height": loaded_image.height,
                "expression": expr,
                "boxes": [[round(value, 1) for value in box] for box in grounding.boxes],
                "status": str(grounding.status),
                "text": grounding.text,
            }
        )
    )


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("out/demo"),
    assets: Annotated[Path, typer.Option(help="Folder of the scene images; fetched if missing.")] = Path("assets"),
) -> None:
    """Ground 24 images with the pocket model and its twin without VPP; print a table and write a page."""
    from rich.console import Console

    from vpp_plugins.attach import active_vpp
    from vpp_plugins.evaluate import assets_or_none, run_demo, show_table, write_page
    from vpp_plugins.ground import Grounder
    from vpp_plugins.pocket import load_detection_heads, load_pocket

    out.mkdir(parents=True, exist_ok=True)  # before the models: a bad folder fails at once
    console = Console()
    found = assets_or_none(assets, lambda sentence: console.print(sentence, highlight=False, markup=False))
    models = {"VPP": load_pocket(vpp=True), "without VPP": load_pocket(vpp=False)}
    grounders = {name: Grounder(model, processor) for name, (model, processor) in models.items()}
    with console.status("Grounding") as status:
        result = run_demo(grounders, found, status.update)
    page = write_page(result, active_vpp(models["VPP"][0]), out, load_detection_heads())
    show_table(result, console)
    console.print(f"The images: {page}", highlight=False, markup=False, soft_wrap=True)


def _check_writable(out: Path) -> None:
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise VPPError(f"'{out}' does not end in an image format: name it .png or .jpg.")
    if not out.parent.is_dir():
        raise VPPError(f"the folder '{out.parent}' does not exist: make it first.")
    if out.is_dir():
        raise VPPError(f"'{out}' is a folder: give the name of a file.")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise VPPError(f"'{out}' may not be written: give another place.")
