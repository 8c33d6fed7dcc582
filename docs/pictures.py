"""Make the pages' images, and the gallery's page: `python -m docs.pictures`, a minute or two on a CPU.

What is shown follows rules that do not look at a single answer: photographs in the order of refs.json, the first six
that the model hits and the first six that it misses. Only the opening image is a chosen one, and its caption says so.
Pages are shown by Chromium; without it those images stay as they are.
"""

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from docs import diagrams, layouts
from examples.tutorial.run import save_image
from vpp_plugins import GlobalVPP, Grounder
from vpp_plugins.boxes import Box, box_iou, frame_rectangle
from vpp_plugins.config import AxisStyle
from vpp_plugins.data.scenes import FOLDER, Scene, load_real_photos
from vpp_plugins.evaluate import app
from vpp_plugins.evaluate.attention import attend
from vpp_plugins.evaluate.demo import draw_axes
from vpp_plugins.images import draw_boxes, shrink
from vpp_plugins.pocket import load_pocket
from vpp_plugins.prompts import draw_overlay
from vpp_plugins.report import COLOURS, TRUTH

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
WITH, WITHOUT, *_ = COLOURS
OPENING = "world_animals_polar_bear"
STYLES: dict[AxisStyle, int] = {"edge-0.1": 8, "edge-0.05": 8, "cross": 8, "padding": 1}
"""The axes' styles, and how many times as strong as they are they are shown; the last is opaque."""
EACH = 6
"""Right and wrong answers of the gallery."""
GALLERY = """# Gallery

The pocket model's answers about [photographs that it never saw](pocket-model.md), the first {each} that it hits (IoU
with the truth at least 0.5) and the first {each} that it misses, in the order of `refs.json`: of all {count}
expressions it hits {hits}, its twin without VPP {twin}.
**Green** is the truth, **blue** with VPP, **orange** without. `python -m docs.pictures` makes this page.

## Right

{right}
## Wrong

{wrong}
## What the axes look like

![The axes alone: a band of numbers from 0.1 to 0.9 along all four edges](images/axes.webp)

## What a wrong frame looks like

One answer, `{numbers}`, read in three frames. LLaVA means fractions of the image padded to a square; read as fractions
of the image itself the box slides, and read in another unit it shrinks into a corner. [`vpp doctor`](data.md) finds
such boxes before a model learns them.

![The same four numbers as boxes in three frames: only the first lies on the animal](images/frames.webp)
"""


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    grounders = [Grounder(*load_pocket(vpp=vpp)) for vpp in (True, False)]
    asked = [(photo, one) for photo in load_real_photos() for one in photo.expressions]
    images, words = [photo.image for photo, _ in asked], [one.text for _, one in asked]
    found = [[answer.boxes[0] if answer.boxes else None for answer in asks(images, words)] for asks in grounders]
    truths = [one.box_xyxy for _, one in asked]
    hits = [
        [one is not None and box_iou(one, true) >= 0.5 for one, true in zip(own, truths, strict=True)] for own in found
    ]
    lines: dict[bool, list[str]] = {True: [], False: []}
    for number, hit in enumerate(hits[0]):
        if len(lines[hit]) == EACH:
            continue
        name = f"{'right' if hit else 'wrong'}-{len(lines[hit]) + 1}.webp"
        boxes = [(truths[number], TRUTH), (found[0][number], WITH), (found[1][number], WITHOUT)]
        save(boxed(images[number], boxes), name, 420)
        lines[hit].append(f"![{words[number]}: the true box and both answers](images/{name})\n*{words[number]}*\n\n")
    opening = next(number for number, (photo, _) in enumerate(asked) if photo.key == OPENING)
    boxes = [(found[0][opening], WITH)]
    draw_opening(grounders[0], images[opening], words[opening], boxes)
    numbers = draw_frames(images[opening], truths[opening])
    about = {"each": EACH, "count": len(asked), "hits": sum(hits[0]), "twin": sum(hits[1]), "numbers": numbers}
    text = GALLERY.format(right="".join(lines[True]), wrong="".join(lines[False]), **about)
    (DOCS / "gallery.md").write_text(text)
    draw_inputs(images[opening])
    show_pages()
    show_app()
    diagrams.draw_all(IMAGES)


def boxed(image: Image.Image, boxes: Sequence[tuple[Box | None, str]]) -> Image.Image:
    shown = [(box, colour) for box, colour in boxes if box is not None]
    return draw_boxes(image, [box for box, _ in shown], colours=[colour for _, colour in shown])


def draw_opening(grounder: Grounder, image: Image.Image, words: str, boxes: Sequence[tuple[Box | None, str]]) -> None:
    """Show one photograph as it is asked about: its axes, where the queries look, the answer."""
    seen, axes = attend(grounder, image, words), draw_axes(grounder, image)
    assert axes is not None
    answer = boxes[0][0]
    queries = seen.draw_queries(None if answer is None else seen.nearest(answer))
    panels = [(axes.laid, "Global VPP: axes"), (queries, "Local VPP: queries"), (boxed(image, boxes), f"{words}")]
    save(strip(panels), "grounded.webp", 1320)
    save(axes.alone, "axes.webp", 420)


def draw_frames(image: Image.Image, box: Box) -> str:
    """Show a box that LLaVA wrote in its own frame and in two wrong ones; returns its numbers."""
    left, top, side, _ = frame_rectangle("square", (image.height, image.width))
    x1, y1, x2, y2 = (
        round(value, 2)
        for value in ((box[0] - left) / side, (box[1] - top) / side, (box[2] - left) / side, (box[3] - top) / side)
    )
    own = (x1 * side + left, y1 * side + top, x2 * side + left, y2 * side + top)
    width, height = image.size
    stretched = (x1 * width, y1 * height, x2 * width, y2 * height)
    shrunk = tuple(value / 10 for value in stretched)
    panels = [
        (boxed(image, [(own, TRUTH)]), "of the padded square: right"),
        (boxed(image, [(stretched, "#e6194b")]), "of the image: wrong"),
        (boxed(image, [(shrunk, "#e6194b")]), "in another unit: wrong"),
    ]  # fmt: skip
    save(strip(panels), "frames.webp", 1320)
    return f"[{x1}, {y1}, {x2}, {y2}]"


def draw_inputs(image: Image.Image) -> None:
    """Show what each family's vision encoder gets of one photograph, and the axes' styles."""
    for name, family in layouts.FAMILIES.items():
        save(strip(list(layouts.encoder_inputs(family, image)), height=240), f"layout-{name}.webp", 1320)
    axes = [(draw_overlay(GlobalVPP(style=style), image, gain=gain), style) for style, gain in STYLES.items()]
    save(strip(axes, height=300), "styles.webp", 1320)


def show_pages() -> None:
    """Show the doctor's page of boxes in a wrong frame, and an evaluation's page, as Chromium shows them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "boxes.json").write_text(json.dumps([misread(photo) for photo in load_real_photos()]))
        Path(folder, "photos").symlink_to(FOLDER)
        doctor = ["doctor", "boxes.json", "--format", "vpp-sft", "--images", "photos", "--out", "doctor.html"]
        evaluation = ["eval", "--model", "pocket", "--data", "photos", "--split", "photos", "--out", "eval"]
        for words in (doctor, evaluation):  # the doctor's exit code says that something is to be mended
            subprocess.run([sys.executable, "-m", "vpp_plugins.cli", *words], cwd=folder, check=False)
        for theme in diagrams.THEMES:
            save_image(Path(folder, "doctor.html"), IMAGES / f"doctor-frame-{theme}.webp")
            save_image(Path(folder, "eval/report.html"), IMAGES / f"evaluation-{theme}.webp")


def show_app() -> None:
    """Show the app with an answer, light and dark; without gradio or playwright the images stay as they are."""
    try:
        sync_playwright = importlib.import_module("playwright.sync_api").sync_playwright
        built = app.build_app(app.load_side_by_side())
    except ImportError as error:
        print(f"The app's images stay as they are: {error}")
        return
    _, address, _ = built.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(FOLDER)])
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme in diagrams.THEMES:
            page = browser.new_page(viewport={"width": 1100, "height": 1300})
            page.set_default_timeout(240_000)
            page.goto(f"{address}?__theme={theme}")
            page.locator("input[type=file]").first.set_input_files(FOLDER / f"{OPENING}.jpg")
            page.get_by_label("Expression").fill("the polar bear")
            page.get_by_role("button", name="Ask").click()
            page.get_by_text("Where the queries look").first.wait_for()
            page.wait_for_timeout(2000)
            page.screenshot(path=Path(folder, "app.png"))
            save_image(Path(folder, "app.png"), IMAGES / f"app-{theme}.webp")
    built.close()


def misread(photo: Scene) -> dict[str, object]:
    """Return a photograph as a dialogue whose boxes are shares of the image, where LLaVA's are of its padded square."""
    width, height = photo.image.size
    turns = []
    for one in photo.expressions:
        box = [round(value / side, 3) for value, side in zip(one.box_xyxy, (width, height) * 2, strict=True)]
        question = f"Please provide the bounding box coordinate of the region this sentence describes: {one.text}"
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": str(box)}]
    turns[0]["value"] = "<image>\n" + turns[0]["value"]
    return {"id": photo.key, "image": f"{photo.key}.jpg", "conversations": turns}


def strip(panels: Sequence[tuple[Image.Image, str]], height: int = 360, gap: int = 12) -> Image.Image:
    """Lay images side by side at one height, each with its words below, on grey that suits light and dark pages."""
    scaled = [
        (one.resize((round(one.width * height / one.height), height), Image.Resampling.LANCZOS), words)
        for one, words in panels
    ]
    width = sum(one.width for one, _ in scaled) + gap * (len(scaled) + 1)
    page = Image.new("RGB", (width, height + 2 * gap + 32), "#6b7280")
    pen, x = ImageDraw.Draw(page), gap
    for one, words in scaled:
        page.paste(one, (x, gap))
        pen.text((x, height + gap + 6), words, fill="white", font=ImageFont.load_default(size=22))
        x += one.width + gap
    return page


def save(image: Image.Image, name: str, side: int) -> None:
    shrink(image, side).save(IMAGES / name, quality=82)


if __name__ == "__main__":
    main()
