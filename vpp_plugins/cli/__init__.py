"""The command `vpp`. Every command is a thin call of a public function; what it needs is imported when it runs."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Never

from vpp_plugins import __version__
from vpp_plugins.config import MAX_IMAGE_PIXELS
from vpp_plugins.errors import VPPError, install_command, named_extras

try:
    import typer
except ModuleNotFoundError:  # the core installs without it
    sys.exit(f"The command line needs typer: {install_command('demo')}.")

from vpp_plugins.cli import (
    bake,
    browser,
    convert,
    data,
    demo,
    doctor,
    eval,  # noqa: A004
    fetch,
    ground,
    plugins,
    study,
    train,
    train_detector,
)

app = typer.Typer(
    help="Visual Position Prompts for multimodal LLMs: ground expressions, make and check data, train, measure.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _say_version(asked: bool) -> bool:
    if asked:
        typer.echo(__version__)
        raise typer.Exit
    return asked  # what a callback returns is the option's value


@app.callback()
def settings(
    max_image_pixels: Annotated[
        int | None, typer.Option(help="The most pixels of an image; 64 million unless named.", min=1, max=178_956_970)
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Set what holds for every command."""
    if max_image_pixels is not None:
        os.environ[MAX_IMAGE_PIXELS] = str(max_image_pixels)  # for worker processes too


for command in (
    ground.ground,
    demo.demo,
    fetch.fetch,
    browser.app,
    train.train,
    train_detector.train_detector,
    plugins.plugins,
    convert.convert,
    bake.bake,
    doctor.doctor,
    eval.compare,
):
    app.command()(command)
app.add_typer(data.data, name="data")
app.add_typer(eval.evaluation, name="eval")
app.add_typer(study.study, name="study")


def main() -> None:
    """Run the command line; a mistake of the user's ends with one sentence and exit code 1."""
    # OpenMP's threads spin while they wait, which on a busy machine takes the core from the thread they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the hub and of transformers, which would fill a log
    warnings.formatwarning = _warning_line
    try:
        with named_extras():
            app(prog_name="vpp")
    except VPPError as error:
        _fail(str(error))
    except (FileExistsError, NotADirectoryError) as error:
        _fail(f"'{error.filename}' is no folder, where one is needed: name another place.")
    except PermissionError as error:
        _fail(f"'{error.filename}' may not be read or written by you: change its permissions, or name another place.")
    except OSError as error:  # such as a full disk
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return what is printed of a warning: of one of ours the sentence, which a place in the code does not explain."""
    ours = Path(__file__).parents[1] in Path(filename).parents
    return f"Warning: {message}\n" if ours else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _fail(sentence: str) -> Never:
    typer.echo(f"vpp: {sentence}", err=True)
    sys.exit(1)
