"""`vpp data`: make and inspect data."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpp_plugins.cli.train import Changes, Recipes
from vpp_plugins.errors import VPPError

if TYPE_CHECKING:
    from vpp_plugins.data import PixelBudget, Tally

data = typer.Typer(help="Make and inspect data.", no_args_is_help=True)


SplitName = enum.StrEnum("SplitName", "train val test heldout sets")


@data.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.", show_default=False)],
    count: Annotated[int, typer.Option(help="How many scenes.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Identical seeds give identical bytes.")] = 0,
    split: Annotated[
        SplitName,
        typer.Option(help="test: unseen backgrounds; heldout: unseen nouns too; sets: several or absent objects."),
    ] = SplitName.train,
    size: Annotated[int, typer.Option(help="Side of the images, pixels.")] = 448,
    shapes: Annotated[bool, typer.Option(help="Draw shapes in code; needs no download.")] = False,
    assets: Annotated[Path, typer.Option(help="Folder of the scene images; fetched if missing.")] = Path("assets"),
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
) -> None:
    """Compose scenes with referring expressions.

    Each expression is true of exactly one object of photographs cut out and put together.

    A killed run continues when it is called again.

    Example: vpp data scenes --out scenes/val --count 500 --split val
    """
    from vpp_plugins.data.scenes import Shapes, fetch_assets, write_scenes

    source = Shapes() if shapes else fetch_assets(assets, progress=typer.echo)
    folder = write_scenes(out, count, seed, split.value, source=source, size=size, workers=workers)
    typer.echo(f"{count} scenes in {folder}")


@data.command()
def chats(
    out: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    model: Annotated[str, typer.Option(help="A host before it learns: a folder or hub id.", show_default=False)],
    count: Annotated[int | None, typer.Option(help="How many questions; all unless named.", min=1)] = None,
    questions: Annotated[
        Path | None, typer.Option(help="A file of questions, one a line; ours, 800, unless named.", show_default=False)
    ] = None,
    longest: Annotated[int, typer.Option(help="Tokens that an answer has at most.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Identical seeds ask and answer alike.", min=0, max=2**63 - 1)] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Have a model answer plain questions.

    Mixed into a recipe's boxes, its own answers keep it from forgetting how to talk:
    mix = [{data = "chats.jsonl", weight = 0.2}]. For 800, SmolLM2 takes 5 minutes on a CPU.

    Example: vpp data chats out/chats.jsonl --model out/smollm2
    """
    from vpp_plugins.data import check_target
    from vpp_plugins.evaluate import load_grounder
    from vpp_plugins.files import why_unwritable
    from vpp_plugins.train import plain_questions, read_questions, write_chats

    check_target(out, [], overwrite=overwrite)
    if why := why_unwritable(out.parent):
        raise VPPError(f"'{out.parent}' cannot be written ({why}): name another file.")
    asked = plain_questions(count, seed=seed) if questions is None else read_questions(questions)[:count]
    written = write_chats(out, load_grounder(model), asked, longest=longest, seed=seed)
    typer.echo(f"{written} answers in {out}")


Images = Annotated[
    Path | None, typer.Option(help="Folder of the images, where the file holds no sizes, or shards are written.")
]
Sizes = Annotated[Path | None, typer.Option(help="File of the images' sizes: read first, and added to.")]
Family = Annotated[str, typer.Option(help="Whose boxes stand in the text of dialogues: llava, internvl, qwen2-vl, ...")]
Boxes = Annotated[
    str,
    typer.Option(
        help="How the file's boxes are written, where not as its format says: pixels, resized, 0-1, 0-1000; "
        "also 0-1,padded or pixels,xywh."
    ),
]
MinPixels = Annotated[
    int | None,
    typer.Option(help="Of resized pixels, as qwen2.5-vl's: the least to which images are resized.", min=1),
]
MaxPixels = Annotated[int | None, typer.Option(help="Of qwen2.5-vl: the most; its own setting unless named.", min=1)]


def pixel_budget(least: int | None, most: int | None) -> "PixelBudget | None":
    """Return how images were resized, where an option says so; what is not named is as Qwen's processor is set."""
    from vpp_plugins.data import PixelBudget

    named = {name: value for name, value in (("least", least), ("most", most)) if value is not None}
    return PixelBudget(**named) if named else None


@data.command()
def formats() -> None:
    """List the formats to convert from and to."""
    from vpp_plugins.data.formats import FORMATS

    for name, about in FORMATS.items():
        ways = "read, write" if about.write else "read only"
        typer.echo(f"{name:22} {ways:12} {about.about}; boxes: {about.boxes}")


@data.command()
def convert(
    source: Annotated[Path, typer.Argument(help="What to read.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="What to write; it appears when it is complete.", show_default=False)],
    from_: Annotated[str, typer.Option("--from", help="Its format; see vpp data formats.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="The format to write.", show_default=False)],
    images: Images = None,
    sizes: Sizes = None,
    family: Family = "llava",
    boxes: Boxes = "",
    to_family: Annotated[str, typer.Option(help="Whose boxes to write into text; the same unless named.")] = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    split: Annotated[str, typer.Option(help="Only this split, where the file holds several.")] = "",
    strip_prefix: Annotated[str, typer.Option(help="Cut this from the beginning of images' paths.")] = "",
    images_to: Annotated[Path | None, typer.Option(help="Write the images that lie in the source here.")] = None,
    shard_mb: Annotated[int, typer.Option(help="How large a shard of webdataset gets, about.", min=1)] = 1000,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing target.")] = False,
) -> None:
    """Convert a data set from one format to another.

    What is faulty is left out, counted, and named.

    Example: vpp data convert refcoco/ val.jsonl --from refer --to eval-jsonl --split val

    Shards: vpp data convert train.json shards --from vpp-sft --to webdataset --images images
    """
    from vpp_plugins.data import convert as run
    from vpp_plugins.data.formats import Reading

    done = run(
        source,
        target,
        source_format=from_,
        target_format=to,
        images=images,
        sizes=sizes,
        family=family,
        target_family=to_family,
        reading=Reading(
            split=split,
            strip_prefix=strip_prefix,
            images_to=images_to,
            boxes=boxes,
            pixels=pixel_budget(min_pixels, max_pixels),
        ),
        shard_bytes=shard_mb * 1_000_000,
        overwrite=overwrite,
    )
    typer.echo(f"{done.samples:,} samples, {done.turns:,} turns, {done.boxes:,} boxes in {target}")
    _print_issues("", done.tally)


@data.command()
def split(
    source: Annotated[Path, typer.Argument(help="What to read.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write train, val and test into.", show_default=False)],
    from_: Annotated[str, typer.Option("--from", help="Its format; see vpp data formats.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="The format to write; the same unless named.")] = "",
    val: Annotated[float, typer.Option(help="Share of the images to validate on; 0: none.", min=0, max=1)] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the images to test on; 0: none.", min=0, max=1)] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same sides.")] = 0,
    images: Images = None,
    sizes: Sizes = None,
    family: Family = "llava",
    boxes: Boxes = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    overwrite: Annotated[bool, typer.Option(help="Replace existing targets.")] = False,
) -> None:
    """Split a data set by its images.

    No image is on two sides, nor an identical one under another name.

    Example: vpp data split all.json parts --from vpp-sft --images images --val 0.1 --test 0.1
    """
    from vpp_plugins.data import split_data
    from vpp_plugins.data.formats import Reading

    done = split_data(
        source,
        out,
        source_format=from_,
        target_format=to,
        shares={name: share for name, share in (("val", val), ("test", test)) if share},
        seed=seed,
        images=images,
        sizes=sizes,
        family=family,
        reading=Reading(boxes=boxes, pixels=pixel_budget(min_pixels, max_pixels)),
        overwrite=overwrite,
    )
    for name, side in done.sides.items():
        typer.echo(f"{done.files[name]}: {side.samples:,} samples of {done.images[name]:,} images")
    if done.folder is not None:
        typer.echo(f"{done.folder}: the images that lie in {source}; name it as --images")
    total = sum(done.images.values())
    by = (
        "the bytes of all were compared"
        if done.compared == total
        else (f"the bytes of {done.compared:,} of {total:,} were compared, of the others names alone (--images)")
    )
    typer.echo(f"No image is on two sides: {by}.")
    _print_issues("", done.tally)


@data.command()
def head(
    source: Annotated[Path, typer.Argument(help="What to read.", show_default=False)],
    from_: Annotated[str, typer.Option("--from", help="Its format; see vpp data formats.", show_default=False)],
    count: Annotated[int, typer.Option("-n", "--count", help="How many samples.", min=1)] = 5,
    images: Images = None,
    sizes: Sizes = None,
    family: Family = "llava",
    boxes: Boxes = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Show the first samples as they are read, boxes in pixels.

    Example: vpp data head train.json --from vpp-sft --images images -n 3
    """
    from vpp_plugins.data import head as first
    from vpp_plugins.data.formats import Reading

    reading = Reading(family=family, boxes=boxes, pixels=pixel_budget(min_pixels, max_pixels))
    for sample in first(source, from_, count, images=images, sizes=sizes, reading=reading):
        typer.echo(sample.readable().encode(errors="replace").decode())
    _print_issues("", reading.tally)


@data.command("build-vpp-sft")
def build(
    target: Annotated[Path, typer.Argument(help="The JSON file to write.", show_default=False)],
    llava: Annotated[Path | None, typer.Option(help="llava_v1_5_mix665k.json")] = None,
    cb_grd: Annotated[Path | None, typer.Option(help="ChatterBox's CB_GND.json")] = None,
    cb_ref: Annotated[Path | None, typer.Option(help="ChatterBox's CB_REF.json")] = None,
    genixer: Annotated[Path | None, typer.Option(help="Genixer's syn_lcs_filtered60.jsonl")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that holds coco, vg and LLaVA-Pretrain.")] = None,
    sizes: Sizes = None,
    genixer_limit: Annotated[int | None, typer.Option(help="Take only the first so many of Genixer's.", min=0)] = None,
    strip_prefix: Annotated[str, typer.Option(help="Cut this from the beginning of Genixer's paths.")] = "",
    like_reference: Annotated[bool, typer.Option(help="Bring back the faults of the reference's converters.")] = False,
    strict_counts: Annotated[bool, typer.Option(help="Fail where a count is not the published one.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing target.")] = False,
) -> None:
    """Assemble VPP-SFT from its four public sources.

    The counts are compared with the published ones.

    Example: vpp data build-vpp-sft vpp_sft.json --llava llava_v1_5_mix665k.json --cb-grd CB_GND.json
    --cb-ref CB_REF.json --genixer syn_lcs_filtered60.jsonl --images playground/data
    """
    from vpp_plugins.data import PUBLISHED, build_vpp_sft

    named = {"llava-665k": llava, "cb-grd": cb_grd, "cb-ref": cb_ref, "genixer": genixer}
    built = build_vpp_sft(
        target,
        {name: path for name, path in named.items() if path is not None},
        images=images,
        sizes=sizes,
        genixer_limit=genixer_limit,
        strip_prefix=strip_prefix,
        like_reference=like_reference,
        strict_counts=strict_counts,
        overwrite=overwrite,
    )
    for name, part in built.sources.items():
        differs = "" if part.samples == PUBLISHED[name] else f"  differs by {part.samples - PUBLISHED[name]:+,}"
        typer.echo(f"{name:12} {part.samples:>9,} dialogues, published {PUBLISHED[name]:>9,}{differs}")
        _print_issues("    ", part.tally)
    typer.echo(f"{'all':12} {built.samples:>9,} dialogues, published {sum(PUBLISHED.values()):>9,}")


@data.command()
def preview(
    recipes: Recipes,
    changes: Changes = None,
    index: Annotated[int, typer.Option(help="Which sample, counted from 0.", min=0)] = 0,
) -> None:
    """Show a training sample's exact tokens.

    What is learned stands between ⟦ and ⟧. Loads the processor, but no weights.

    Example: vpp data preview examples/recipes/llava-1.5-lora.toml --index 3
    """
    from rich.console import Console

    from vpp_plugins.train import Recipe

    recipe = Recipe.load(*recipes, changes=changes or [])
    from vpp_plugins.train import preview_sample  # takes seconds to import: a faulty recipe is refused before

    Console().print(preview_sample(recipe, index))


def _print_issues(indent: str, tally: "Tally") -> None:
    for issue, count, examples in tally.rows():
        typer.echo(f"{indent}{count:,} x {issue}: {examples}")
