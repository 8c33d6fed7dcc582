"""`vpp ground`: find what an expression names, in one image or in a folder of them."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpp_plugins.errors import VPPError, few

if TYPE_CHECKING:
    from vpp_plugins.ground import Grounder

DRAWN = (".png", ".jpg", ".jpeg")
"""How the name of a drawn image ends."""
LINES = ".jsonl"
AT_A_TIME = 8
TWINS = ("pocket", "smollm2")
"""Models that ship with and without VPP."""


def ground(
    image: Annotated[Path, typer.Option(help="The image: JPEG, PNG, WebP, ...; or a folder.", show_default=False)],
    expr: Annotated[str, typer.Option(help='What to find, such as "the leftmost kettle".', show_default=False)],
    model: Annotated[str, typer.Option(help="pocket, smollm2, or a model's folder or hub id.")] = "pocket",
    vpp: Annotated[str | None, typer.Option(help="Prompts that save_vpp wrote for the model.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of JSON lines (.jsonl), or of the one image with its box (.png).")
    ] = None,
    drawn: Annotated[Path | None, typer.Option(help="Folder for every image with its boxes drawn.")] = None,
    without_vpp: Annotated[bool, typer.Option(help="Ask the twin that was trained without VPP.")] = False,
) -> None:
    """Find what an expression names in images.

    In one, or in each of a folder: the answers are printed as JSON, one line for each image, or written to a file.
    The status says how an answer could be read, not whether it is right.

    Example: vpp ground --image photo.jpg --expr "the dog" --out boxed.png

    A folder: vpp ground --image photos --expr "the dog" --out boxes.jsonl

    Your model: vpp ground --model out/run/final --image photo.jpg --expr "the dog"
    """
    from vpp_plugins.images import load_image

    images = _images(image)
    if not image.is_dir():
        load_image(image)  # before the model: a bad image fails at once
    lines_to = _check_writable(out, several=image.is_dir())
    if drawn is not None:
        drawn.mkdir(parents=True, exist_ok=True)
    grounder = _grounder(model, vpp, without_vpp=without_vpp)
    answers = list(_answered(grounder, images, expr, drawn, None if lines_to else out))
    _write([json.dumps(answer, ensure_ascii=False) for answer in answers], lines_to)
    unread = [str(answer["error"]) for answer in answers if "error" in answer]
    if unread:
        raise VPPError(f"{len(unread)} of {len(images)} images could not be read: {few(unread)}.")


def _images(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    from PIL import Image

    endings = Image.registered_extensions()
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in endings and not file.name.startswith("."))
    if not found:
        raise VPPError(f"'{path}' is a folder without an image: name one with images in it, or an image.")
    return found


def _grounder(model: str, vpp: str | None, *, without_vpp: bool) -> "Grounder":
    if without_vpp and (model not in TWINS or vpp is not None):
        raise VPPError(
            f"--without-vpp asks the twin of {' or '.join(TWINS)}: of a model of yours, name the one that was trained "
            "without by --model."
        )
    import torch

    from vpp_plugins.evaluate import load_grounder

    elsewhere = model != "pocket" and torch.accelerator.is_available()
    device = str(torch.accelerator.current_accelerator()) if elsewhere else "cpu"
    return load_grounder(f"{model}-without-vpp" if without_vpp else model, vpp=vpp, device=device)


def _answered(
    grounder: "Grounder", paths: Sequence[Path], expression: str, drawn: Path | None, boxed: Path | None
) -> Iterator[dict[str, Any]]:
    """Ask about a few images at a time; draws them into a folder, or the one image into a file."""
    from vpp_plugins.images import load_image

    for start in range(0, len(paths), AT_A_TIME):
        loaded: dict[Path, Any] = {}
        faults: dict[Path, str] = {}
        for path in paths[start : start + AT_A_TIME]:
            try:
                loaded[path] = load_image(path)
            except VPPError as error:
                faults[path] = str(error)
        answers = dict(zip(loaded, grounder([*loaded.values()], [expression] * len(loaded)), strict=True))
        for path in paths[start : start + AT_A_TIME]:
            if path in faults:
                yield {"image": str(path), "error": faults[path]}
                continue
            if boxed is not None:
                answers[path].draw().save(boxed)
            if drawn is not None:
                answers[path].draw().save(drawn / f"{path.name}.png")  # a.jpg and a.png are two
            yield {"image": str(path), **answers[path].to_dict(), "status": answers[path].status.word}


def _write(lines: Sequence[str], out: Path | None) -> None:
    text = "".join(f"{line}\n" for line in lines)
    if out is None:
        typer.echo(text, nl=False)
        return
    from vpp_plugins.files import write_whole

    write_whole(out, text)
    typer.echo(f"{len(lines)} lines: {out}")


def _check_writable(out: Path | None, *, several: bool) -> Path | None:
    """Return where JSON lines go, None being the screen; raises VPPError for a place that nothing can be written to."""
    if out is None:
        return None
    if out.is_dir():
        raise VPPError(f"'{out}' is a folder: give the name of a file, and for drawn images --drawn {out}.")
    if several and out.suffix.lower() != LINES:
        raise VPPError(f"the answers for a folder do not fit into '{out}': name it .jsonl, and draw with --drawn DIR.")
    if out.suffix.lower() not in (*DRAWN, LINES):
        raise VPPError(f"'{out}' does not end in an image format: name it .png or .jpg, or .jsonl for JSON lines.")
    if not out.parent.is_dir():
        raise VPPError(f"the folder '{out.parent}' does not exist: make it first.")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise VPPError(f"'{out}' may not be written: give another place.")
    return out if out.suffix.lower() == LINES else None
