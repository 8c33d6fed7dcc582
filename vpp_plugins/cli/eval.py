"""`vpp eval`: measure grounding under a named protocol, judge answers again, and compare two evaluations."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vpp_plugins.cli.data import Boxes, Family, MaxPixels, MinPixels, pixel_budget
from vpp_plugins.errors import VPPError


class RunByDefault(typer.core.TyperGroup):
    """`vpp eval --model ...` means `vpp eval run --model ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the name of the default command where none stands."""
        named = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if named else ["run", *args])


evaluation = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    short_help="Measure grounding, and compare.",
    help="Measure grounding: vpp eval --model pocket --data photos. Its options: vpp eval run --help.",
)

Meteor = Annotated[bool, typer.Option("--meteor", help="Score region captions by METEOR too; needs Java.")]
Format = Annotated[str | None, typer.Option("--format", help="Format of a data file, such as eval-jsonl.")]


@evaluation.command()
def run(
    model: Annotated[str, typer.Option(help="pocket, smollm2, NAME-without-vpp, or a folder or hub id.")] = "pocket",
    vpp: Annotated[str | None, typer.Option(help="Prompts that save_vpp wrote for the model.")] = None,
    data: Annotated[str, typer.Option(help="photos, a folder of `vpp data scenes`, a file, a benchmark.")] = "photos",
    folder: Annotated[str | None, typer.Option(help="Where a benchmark's files lie; see vpp eval benchmarks.")] = None,
    data_format: Format = None,
    images: Annotated[str | None, typer.Option(help="Folder of a data file's images.")] = None,
    family: Family = "llava",
    boxes: Boxes = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    split: Annotated[str | None, typer.Option(help="Its name, such as refcoco/testA: the rows are counted.")] = None,
    protocol: Annotated[str, typer.Option(help="How to ask, read and count; a benchmark has its own.")] = "",
    box_format: Annotated[str | None, typer.Option(help="How the model writes boxes, if not as its family.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions asked at a time.", min=1)] = 8,
    limit: Annotated[int | None, typer.Option(help="Only the first so many rows.", min=1)] = None,
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="A control: each image is asked about another's expressions.")
    ] = False,
    disable_vpp: Annotated[
        bool, typer.Option("--disable-vpp", help="A control: the same weights, asked with the prompts off.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    meteor: Meteor = False,
    out: Annotated[Path, typer.Option(help="Folder of answers, results and report.")] = Path("out/eval"),
) -> None:
    """Measure how well a model grounds.

    Acc@0.5, 0.75 and 0.9, mean IoU, intervals, and a page of the worst answers.
    Killed at any point, the same command continues. Several GPUs: accelerate launch -m vpp_plugins.cli eval ...

    Example: vpp eval --model pocket --data photos --out out/eval/photos
    """
    from vpp_plugins.data import Tally
    from vpp_plugins.evaluate import full_split, load_grounder, load_rows, measure, named_benchmark, shuffled_rows
    from vpp_plugins.evaluate import protocol as named

    rules = named(protocol or (named_benchmark(data).protocol if folder else "default"))
    tally = Tally()
    rows = load_rows(
        data,
        data_format=data_format,
        folder=folder,
        images=images,
        split=split,
        family=family,
        boxes=boxes,
        pixels=pixel_budget(min_pixels, max_pixels),
        task=rules.task,
        tally=tally,
    )[:limit]
    grounder = load_grounder(model, vpp=vpp, box_format=box_format, dtype=dtype)
    results = measure(
        grounder,
        shuffled_rows(rows) if shuffled else rows,
        rules,
        out,
        model=model if vpp is None else f"{model} with {vpp}",
        data=data,
        split=full_split(data, split) if folder else split,
        batch_size=batch_size,
        tally=tally,
        control="shuffled" if shuffled else None,
        disable_vpp=disable_vpp,
        with_meteor=meteor,
        timed=True,
    )
    if "figures" in results:
        _show(results, out)


@evaluation.command()
def rescore(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished evaluation.", show_default=False)],
    protocol: Annotated[str, typer.Option(help="The protocol to judge by.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    box_format: Annotated[str | None, typer.Option(help="Read the answers as another family's.")] = None,
    meteor: Meteor = False,
) -> None:
    """Judge answers again under another protocol.

    No model is loaded.

    Example: vpp eval rescore out/eval/photos --protocol lmms-eval --out out/eval/photos-lmms
    """
    from vpp_plugins.evaluate import rescore as judge_again

    _show(judge_again(folder, protocol, out, box_format, with_meteor=meteor), out)


@evaluation.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of an evaluation.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Folder of another one, of the same rows.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("out/eval/compare.html"),
    card: Annotated[
        Path | None, typer.Option(help="Folder of prompts or of a run's final weights, whose model card shows both.")
    ] = None,
) -> None:
    """Say why two evaluations of the same rows differ.

    How far they lie apart, whether that is chance, and what explains it.

    `vpp eval compare` is the same command.

    Example: vpp compare out/eval/photos out/eval/photos-without --out out/eval/compare.html

    Scores for a model card: vpp compare out/eval/control out/eval/vpp --card out/run/final
    """
    from vpp_plugins.attach import put_scores
    from vpp_plugins.evaluate import compare as set_beside
    from vpp_plugins.evaluate import load_evaluation, rows_at_hand, write_comparison

    if not out.parent.is_dir():
        raise VPPError(f"the folder '{out.parent}' does not exist: make it first.")
    found = set_beside(load_evaluation(a), load_evaluation(b))
    gap = found.accuracy
    points = (
        f"{100 * gap.difference.mean:+.1f} points ({100 * gap.difference.low:+.1f} to {100 * gap.difference.high:+.1f})"
    )
    typer.echo(f"A {100 * found.a.accuracy:.1f} %  {a}\nB {100 * found.b.accuracy:.1f} %  {b}")
    typer.echo(f"B minus A: {points}; only A right {gap.only_a}, only B {gap.only_b}, p = {gap.p_value:.2g}")
    for reason in found.reasons:
        typer.echo(f"- {reason}")
    typer.echo(f"The page: {write_comparison(found, out, rows_at_hand(found.a.settings))}")
    if card is not None:
        said = f"The second minus the first, on the same rows: {points} of Acc@0.5."
        typer.echo(f"The card: {put_scores(card, [a, b], said)}")


@evaluation.command()
def benchmarks() -> None:
    """List the benchmarks: size, terms, what is asked, and where the files come from.

    Example: vpp eval --data grefcoco --folder DIR --split testA --model DIR
    """
    from vpp_plugins.evaluate import BENCHMARKS

    for name, one in BENCHMARKS.items():
        splits = ", ".join(f"{split} {count:,}" for split, count in one.splits(name).items()) or "sizes not verified"
        typer.echo(f"{name}: {one.asks}\n  expressions: {splits}; protocol {one.protocol}\n  terms: {one.licence}")
        typer.echo(f"  files: {one.source}\n  layout: {one.read_in or 'not verified: no published number is claimed'}")


@evaluation.command()
def protocols() -> None:
    """List the protocols and the sources of their rules."""
    from vpp_plugins.evaluate import protocols as all_protocols

    for name, one in all_protocols().items():
        typer.echo(f"{name}\t{one.source}")


def _show(results: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    figures, console = results["figures"], Console()
    if "cider" in figures:
        meteor = f", METEOR {figures['meteor']:.3f}" if "meteor" in figures else ""
        console.print(
            f"CIDEr-D {figures['cider']:.3f}{meteor} over {figures['regions']} regions, "
            f"{figures['unreadable']} unreadable",
            highlight=False,
        )
    else:
        _show_boxes(console, results)
    for line in (results.get("time", ""), f"The page: {out / 'report.html'}"):
        if line:
            console.print(line, highlight=False, soft_wrap=True)


def _show_boxes(console: Any, results: dict[str, Any]) -> None:
    from rich.table import Table

    from vpp_plugins.evaluate import FIGURES, interval_text

    figures = results["figures"]
    table = Table(title=f"{results['model']} on {results['data']}, protocol {results['protocol']}")
    for column in ("", "%", "95 % interval"):
        table.add_column(column, justify="left" if column == "" else "right")
    for key, label in FIGURES.items():
        if key in figures:
            table.add_row(label, f"{100 * figures[key]['mean']:.1f}", interval_text(figures[key]))
    console.print(table)
    statuses = ", ".join(f"{count} {name}" for name, count in figures["statuses"].items() if count)
    console.print(f"{figures['rows']} answers: {statuses}", highlight=False)
    for note in results.get("notes", []):
        console.print(f"Note: {note}", highlight=False)
