"""`vpp doctor`: say what is wrong with a data set."""

from pathlib import Path
from typing import Annotated

import typer

from vpp_plugins.cli.data import Boxes, Family, Images, MaxPixels, MinPixels, Sizes, pixel_budget


def doctor(
    file: Annotated[Path, typer.Argument(help="The data set.", show_default=False)],
    format_name: Annotated[str, typer.Option("--format", help="See vpp data formats.", show_default=False)],
    images: Images = None,
    sizes: Sizes = None,
    family: Family = "llava",
    boxes: Boxes = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    out: Annotated[Path | None, typer.Option(help="Also write a page with boxes drawn as they may be meant.")] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write the set here, mended as far as nobody need decide.", show_default=False)
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another set, with which no image may be shared.")] = None,
    against_format: Annotated[str, typer.Option(help="Its format; the same unless named.")] = "",
    against_images: Annotated[Path | None, typer.Option(help="Its images; then their bytes are compared.")] = None,
    decode: Annotated[int, typer.Option(help="Decode up to so many images whole.", min=0)] = 5000,
) -> None:
    """Say what is wrong with a data set.

    And in which frame and unit its boxes most likely are. Ends with exit code 1 where something was found, or where the
    numbers of dialogues' boxes do not decide and nothing is stated (--boxes); with --fix, where something is left.

    Example: vpp doctor train.json --format vpp-sft --images images
    --out doctor.html
    """
    from vpp_plugins.data.doctor import examine

    found = examine(
        file,
        format_name,
        images=images,
        sizes=sizes,
        family=family,
        boxes=boxes,
        pixels=pixel_budget(min_pixels, max_pixels),
        against=against,
        against_format=against_format,
        against_images=against_images,
        decode=decode,
    )
    typer.echo(f"{found.samples:,} samples, {found.boxes:,} boxes, {found.images:,} images")
    for verdict in found.verdicts:
        typer.echo(str(verdict))
        for fit in verdict.shown():
            typer.echo(f"    {fit.fits:6.1%} fit as {fit.candidate}")
    for note in found.notes:
        typer.echo(note)
    for finding in found.findings:
        typer.echo(f"- {finding}")
    if out is not None:
        from vpp_plugins.data.doctor import write_doctor_page

        typer.echo(f"The page: {write_doctor_page(found, out)}")
    if found.healthy:
        typer.echo("Nothing was found.")
    if fix is not None:
        done = found.cure.write(fix)
        written = f"{done.samples:,} samples, {done.turns:,} turns, {done.boxes:,} boxes in {fix}"
        copied = f", the images in {folder}" if (folder := found.cure.images_to(fix)) else ""
        kind = f" ({found.cure.target_format})" if found.cure.target_format != format_name else ""
        typer.echo(f"{written}{kind}{copied}")
        for finding in found.findings:
            typer.echo(f"- {finding.fault}: {found.cure.change(finding)}")
    if not all(fix is not None and found.cure.settles(finding) for finding in found.findings):
        raise typer.Exit(1)
