"""The command `vpp`. Every command is a thin call of a public function; what it needs is imported when it runs."""

import sys
from typing import Never

from vpp_plugins.errors import VPPError

try:
    import typer
except ModuleNotFoundError:  # the core installs without it
    sys.exit("The command line needs typer: pip install 'vpp-plugins[demo]'.")

from vpp_plugins.cli import grounding, hosts, training
from vpp_plugins.cli.data import data, doctor
from vpp_plugins.cli.detector import train_detector
from vpp_plugins.cli.evaluate import evaluation

app = typer.Typer(
    help="Visual Position Prompts for multimodal LLMs: ground expressions, make and check data, train, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    grounding.ground,
    grounding.demo,
    training.train,
    train_detector,
    hosts.plugins,
    hosts.convert,
    hosts.bake,
    doctor,
):
    app.command()(command)
data.command()(training.preview)
app.add_typer(data, name="data")
app.add_typer(evaluation, name="eval")


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
