"""`vpp study`: a fair ablation in one command."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpp_plugins.cli.eval import RunByDefault
from vpp_plugins.errors import VPPError

if TYPE_CHECKING:
    from vpp_plugins.train.study import Study

study = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    short_help="Train and compare variations of a recipe.",
    help="""Train and compare variations of a recipe: vpp study STUDY.toml.

    Every arm is the base recipe with a few settings of its own, and is trained
    with every seed and evaluated at every budget. A study is TOML:

    \b
    recipe = "examples/recipes/pocket.toml"
    output_dir = "out/study"
    seeds = [0, 1, 2]
    budgets = [500, 1000]           # steps; the end is always evaluated
    contrasts = [["none", "local"]] # the second is compared with the first
    [arms.none]
    vpp = "none"
    [arms.local]
    global_vpp = false
    [sets.photos]
    data = "photos"                 # options of vpp eval run

    Further keys: settings (of all arms), varies (keys beside the prompts' in
    which arms may differ). Of a set: curve = false asks it at the end alone,
    shuffled = false leaves the control out. Options: vpp study run --help.
    """,
)

File = Annotated[Path, typer.Argument(help="The study, TOML.", show_default=False)]


@study.command()
def run(
    file: File,
    jobs: Annotated[int, typer.Option(help="Runs at a time; they share the cores.", min=1)] = 1,
) -> None:
    """Train and evaluate all that is not done, and report.

    Killed at any point, the same command goes on.

    Example: vpp study examples/studies/pocket.toml --jobs 2
    """
    from vpp_plugins.train.study import run_study, write_study_report

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends with it
    read = _read(file)
    typer.echo(read.table())
    run_study(read, jobs=jobs, say=typer.echo)
    _written(write_study_report(read))


@study.command()
def plan(file: File) -> None:
    """Print the commands of all that is not done.

    A line for each run, and how an array job takes them.

    Example: vpp study plan examples/studies/pocket.toml > jobs.txt
    """
    from vpp_plugins.train.study import plan as commands

    typer.echo(commands(_read(file)), nl=False)


@study.command()
def report(file: File) -> None:
    """Write the report of all that is done.

    Also from the files of hits/ alone, without models and answers.

    Example: vpp study report examples/studies/pocket.toml
    """
    from vpp_plugins.train.study import write_study_report

    _written(write_study_report(_read(file)))


def _read(file: Path) -> "Study":
    """Read a study; one that is not fair shows in what its arms differ."""
    from vpp_plugins.train.study import Study

    read = Study.load(file)
    try:
        read.check_arms()
    except VPPError:
        typer.echo(read.table())
        raise
    return read


def _written(paths: tuple[Path, Path]) -> None:
    typer.echo(f"The report: {paths[0]} and {paths[1]}")
