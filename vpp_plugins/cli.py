"""The command `vpp`. Every command is a thin call of a public function; what it needs is imported when it runs."""

import enum
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Never

from vpp_plugins.errors import VPPError

try:
    import typer
except ModuleNotFoundError:  # the core installs without it
    sys.exit("The command line needs typer: pip install 'vpp-plugins[demo]'.")

app = typer.Typer(
    help="Visual Position Prompts for multimodal LLMs: ground expressions in pictures, make scenes, list adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Make and inspect data.", no_args_is_help=True)
app.add_typer(data, name="data")


class SplitName(enum.StrEnum):
    """The splits of the scene benchmark."""

    train = "train"
    val = "val"
    test = "test"
    heldout = "heldout"


@app.command()
def ground(
    image: Annotated[Path, typer.Option(help="The picture: JPEG, PNG, WebP, ...", show_default=False)],
    expr: Annotated[str, typer.Option(help='What to find, such as "the leftmost kettle".', show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Also write the picture with the box drawn on it.")] = None,
    without_vpp: Annotated[bool, typer.Option(help="Ask the twin that was trained without VPP.")] = False,
) -> None:
    """Find what an expression names in a picture, with the pocket model; prints JSON.

    Example: vpp ground --image photo.jpg --expr "the dog" --out boxed.png
    """
    from vpp_plugins.images import load_image

    picture = load_image(image)  # before the model: a bad picture fails at once
    if out is not None:
        _check_writable(out)
    from vpp_plugins.ground import Grounder
    from vpp_plugins.pocket import load_pocket

    model, processor = load_pocket(vpp=not without_vpp)
    grounding = Grounder(model, processor)(picture, expr)
    if out is not None:
        grounding.draw().save(out)
    typer.echo(
        json.dumps(
            {
                "image": str(image),
                "width": picture.width,
                "height": picture.height,
                "expression": expr,
                "boxes": [[round(value, 1) for value in box] for box in grounding.boxes],
                "status": str(grounding.status),
                "text": grounding.text,
            }
        )
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("out/demo"),
    assets: Annotated[Path, typer.Option(help="Folder of the scene pictures; fetched if missing.")] = Path("assets"),
) -> None:
    """Ground 24 pictures with the pocket model and its twin without VPP; print a table and write a page."""
    from rich.console import Console

    from vpp_plugins.demo import assets_or_none, run_demo, show_table
    from vpp_plugins.demo_page import write_page
    from vpp_plugins.ground import Grounder
    from vpp_plugins.host import active_vpp
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
    console.print(f"The pictures: {page}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def plugins() -> None:
    """List the installed adapters and where each comes from."""
    from vpp_plugins.plugins import adapters

    for name, plugin in sorted(adapters().items()):
        typer.echo(f"{name}\t{plugin.__name__}")


@data.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.", show_default=False)],
    count: Annotated[int, typer.Option(help="How many scenes.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Identical seeds give identical bytes.")] = 0,
    split: Annotated[
        SplitName, typer.Option(help="test: unseen backgrounds; heldout: unseen nouns on unseen backgrounds.")
    ] = SplitName.train,
    size: Annotated[int, typer.Option(help="Side of the pictures, pixels.")] = 448,
    shapes: Annotated[bool, typer.Option(help="Draw shapes in code; needs no download.")] = False,
    assets: Annotated[Path, typer.Option(help="Folder of the scene pictures; fetched if missing.")] = Path("assets"),
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
) -> None:
    """Compose photo scenes with referring expressions that are true of exactly one object each.

    A killed run continues when it is called again. Example: vpp data scenes --out scenes/val --count 500 --split val
    """
    from vpp_plugins.data.assets import fetch_assets
    from vpp_plugins.data.scene_folder import write_scenes
    from vpp_plugins.data.shapes import Shapes

    source = Shapes() if shapes else fetch_assets(assets, progress=typer.echo)
    folder = write_scenes(out, count, seed, split.value, source=source, size=size, workers=workers)
    typer.echo(f"{count} scenes in {folder}")


def main() -> None:
    """Run the command line; a mistake of the user's ends with one sentence and exit code 1."""
    try:
        app(prog_name="vpp")
    except VPPError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder without permission
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))


def _fail(sentence: str) -> Never:
    typer.echo(f"vpp: {sentence}", err=True)
    sys.exit(1)


def _check_writable(out: Path) -> None:
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise VPPError(f"'{out}' does not end in a picture format: name it .png or .jpg.")
    if not out.parent.is_dir():
        raise VPPError(f"the folder '{out.parent}' does not exist: make it first.")
    if out.is_dir():
        raise VPPError(f"'{out}' is a folder: give the name of a file.")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise VPPError(f"'{out}' may not be written: give another place.")
