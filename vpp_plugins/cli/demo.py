"""`vpp demo`: the pocket model and its twin at work, and how far they are."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("out/demo"),
    assets: Annotated[Path, typer.Option(help="Folder of the scene images; fetched if missing.")] = Path("assets"),
) -> None:
    """Ground 24 images, with and without VPP.

    Asked are the pocket model and its twin that was trained without VPP; the answers are printed and shown on a page.
    """
    out.mkdir(parents=True, exist_ok=True)  # before the models: a bad folder fails at once
    from rich.console import Console

    from vpp_plugins import evaluate
    from vpp_plugins.ground import Grounder
    from vpp_plugins.pocket import load_pocket

    progress = Progress(Console())
    found = evaluate.assets_or_none(assets, progress.say)
    progress.say("Loading the pocket model, with and without VPP")
    models = {"VPP": load_pocket(vpp=True), "without VPP": load_pocket(vpp=False)}
    grounders = {name: Grounder(model, processor) for name, (model, processor) in models.items()}
    progress.say(f"Printed are image, the box of VPP, the IoU ({' and '.join(models)}), the time and the expression")
    heading = iter([evaluate.answer_heading(list(models))])  # comes once, above the first line

    def show(*answer: Any) -> None:
        for line in (*heading, evaluate.answer_line(*answer)):
            progress.say(line, markup=True)

    result = evaluate.run_demo(grounders, found, progress.track, show)
    for line in (*evaluate.demo_summary(result), *evaluate.demo_sentences(result)):
        progress.say(line)
    progress.say(f"The images: {evaluate.write_demo_page(result, grounders['VPP'], out, progress.track)}")


class Progress:
    """Shows how far a command is as it goes: with a bar that counts on a terminal, with lines elsewhere."""

    def __init__(self, console: "Console") -> None:
        self.console = console

    def say(self, sentence: str, *, markup: bool = False) -> None:
        """Print a line at once."""
        self.console.print(sentence, markup=markup, highlight=False, soft_wrap=True)

    def track(self, items: Sequence[Any], what: str) -> Iterable[Any]:
        """Pass the items on, and show how many are through."""
        from rich.progress import track

        if self.console.is_terminal:
            yield from track(items, what, console=self.console, transient=True)
            return
        self.say(what)
        for done, item in enumerate(items, start=1):
            yield item
            if done * 10 // len(items) > (done - 1) * 10 // len(items):  # at every tenth
                self.say(f"  {100 * done // len(items)} % done")
