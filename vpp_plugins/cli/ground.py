"""`vpp ground`: find what an expression names."""

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
    """Find what an expression names in an image.

    Asked is the pocket model; the answer is printed as JSON.

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


def _check_writable(out: Path) -> None:
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise VPPError(f"'{out}' does not end in an image format: name it .png or .jpg.")
    if not out.parent.is_dir():
        raise VPPError(f"the folder '{out.parent}' does not exist: make it first.")
    if out.is_dir():
        raise VPPError(f"'{out}' is a folder: give the name of a file.")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise VPPError(f"'{out}' may not be written: give another place.")
