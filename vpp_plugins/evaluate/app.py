"""The app: an own image and an expression in the browser, answered with and without the prompts, and what they see."""

import json
import os
import shutil
import socket
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vpp_plugins.attach import is_attached, vpp_disabled
from vpp_plugins.data.scenes import FOLDER, load_real_photos
from vpp_plugins.errors import VPPError, named_extras
from vpp_plugins.evaluate.attention import attend
from vpp_plugins.evaluate.demo import box_text, draw_axes, draw_inside
from vpp_plugins.evaluate.models import SHIPPED, load_grounder
from vpp_plugins.files import whole_folder
from vpp_plugins.ground import Grounder, Grounding
from vpp_plugins.images import draw_boxes, load_image, shrink
from vpp_plugins.report import COLOURS

if TYPE_CHECKING:
    from gradio import Blocks

SIDE = 1024
"""The longest side of an image that the app shows, in pixels."""
EXAMPLES = slice(1, None, 5)
"""The photographs to click, a rule and no choice: every fifth of refs.json, each with its first expression."""
EXTRAS = ("demo", "app")
"""What an exported app installs."""

SCRIPT = """from vpp_plugins.evaluate import serve_app

serve_app({model!r}, vpp={vpp!r})
"""
README = """---
title: Visual Position Prompts
emoji: 📐
colorFrom: indigo
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: apache-2.0
---

Where is it? An image and an expression in, boxes out, with Visual Position Prompts and without. The model: {model}.

Here: `pip install -r requirements.txt`, then `python app.py`.
"""


@dataclass(frozen=True)
class SideBySide:
    """A model that is asked with its prompts and without them."""

    grounder: Grounder
    twin: Grounder | None = None
    """Trained alike, without VPP; None asks the same weights with their prompts off."""

    def ask(self, image: Image.Image, expression: str) -> dict[str, Grounding]:
        """Return the answers, by the name of who gave them; a model without prompts gives one."""
        answer = self.grounder(image, expression)
        if not is_attached(self.grounder.model):
            return {"the model, no prompts attached": answer}
        if self.twin is not None:
            return {"with VPP": answer, "its twin, trained without VPP": self.twin(image, expression)}
        with vpp_disabled(self.grounder.model):
            return {"with VPP": answer, "the same weights, prompts off": self.grounder(image, expression)}


def load_side_by_side(model: str = "pocket", *, vpp: str | None = None) -> SideBySide:
    """Load a model and its other side: the twin of one that ships, or of any other its own weights, prompts off.

    `model` and `vpp` are those of `load_grounder`.
    """
    twin = f"{model}-without-vpp"
    if twin in SHIPPED:
        return SideBySide(load_grounder(model, vpp=vpp, device="cpu"), load_grounder(twin, device="cpu"))
    return SideBySide(load_grounder(model, vpp=vpp))


@dataclass(frozen=True)
class AppAnswer:
    """What the app shows for an image and an expression."""

    drawn: Image.Image
    """The image with the first box of every model, in `COLOURS`."""
    words: list[str]
    """By model a line of Markdown: its name, its first box, how that was read, and what it wrote."""
    inside: list[tuple[Image.Image, str]]
    """What the prompts see, each with its caption."""


def answer_app(asked: SideBySide, source: str | Path | None, expression: str, *, inside: bool) -> AppAnswer:
    """Answer one question of the app's; `inside` adds what queries and axes see, for one more pass.

    Raises VPPError for an image that is missing or cannot be read, and for an empty expression.
    """
    if not source:
        raise VPPError("there is no image yet: drop one here, or click an example.")
    if not expression.strip():
        raise VPPError('the expression is empty: say what to look for, such as "the dog".')
    image = load_image(Path(source).read_bytes())
    answers = asked.ask(image, expression)
    found = [(one.boxes[0], colour) for one, colour in zip(answers.values(), COLOURS, strict=False) if one.boxes]
    drawn = draw_boxes(image, [box for box, _ in found], colours=[colour for _, colour in found] or COLOURS)
    words = [f"- **{name}**: {box_text(one)} ({one.status}), from `{one.text}`" for name, one in answers.items()]
    seen = _inside(asked.grounder, image, next(iter(answers.values()))) if inside else []
    return AppAnswer(shrink(drawn, SIDE), words, [(shrink(one, SIDE), caption) for one, caption in seen])


def _inside(grounder: Grounder, image: Image.Image, answer: Grounding) -> list[tuple[Image.Image, str]]:
    if not is_attached(grounder.model):
        return []
    seen = draw_inside(attend(grounder, image, answer.expression), answer.boxes)
    axes = draw_axes(grounder, image)
    return seen if axes is None else [*seen, (axes.laid, f"The axes, six times as strong; weight {axes.weight:.2f}.")]


def build_app(asked: SideBySide, *, inside: bool = True) -> "Blocks":
    """Return the app as a `gradio.Blocks` that is not launched; `inside` is where its check box stands at first."""
    gradio = _gradio()

    def ask(source: str | None, expression: str, inside: bool) -> tuple[Any, ...]:
        try:
            shown = answer_app(asked, source, expression, inside=inside)
        except VPPError as error:
            raise gradio.Error(str(error), duration=20, print_exception=False) from None
        captions = "\n".join(f"1. {caption}" for _, caption in shown.inside)
        return shown.drawn, "\n".join(shown.words), shown.inside, captions

    with gradio.Blocks(title="Visual Position Prompts", analytics_enabled=False) as app:
        gradio.Markdown(
            "# Where is it?\nAn image and an expression in, boxes out: **blue** with Visual Position Prompts, "
            "**orange** without. What you upload stays on the machine that runs this page."
        )
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="filepath", image_mode=None, label="Image", sources=["upload", "clipboard"])
                image.preprocess = lambda payload: payload and payload.path  # what is no image gets our own sentence
                words = gradio.Textbox(label="Expression", placeholder="the dog", max_lines=1, max_length=500)
                seen = gradio.Checkbox(inside, label="Show what axes and queries see")
                button = gradio.Button("Ask", variant="primary")
            with gradio.Column():
                drawn = gradio.Image(label="Answers", format="png", interactive=False)
                answers = gradio.Markdown("Boxes are left, top, right, bottom in pixels.")
        gallery = gradio.Gallery(label="What axes and queries see", columns=3, object_fit="contain", height="auto")
        captions = gradio.Markdown()
        gradio.Examples(_examples(), [image, words], label="Photographs to click")
        for event in (button.click, words.submit):
            event(ask, [image, words, seen], [drawn, answers, gallery, captions], api_name=False)
    return app


def _examples() -> list[list[str]]:
    return [[str(FOLDER / f"{one.key}.jpg"), one.expressions[0].text] for one in load_real_photos()[EXAMPLES]]


def serve_app(
    model: str = "pocket", *, vpp: str | None = None, host: str | None = None, port: int | None = None
) -> None:
    """Load a model, and serve the app until it is stopped; `port` None is the first free one from 7860 on.

    `host` None is this machine alone, or what GRADIO_SERVER_NAME says. Raises VPPError where the port is in use, before
    anything is loaded.
    """
    gradio = _gradio()
    if port is not None:
        _check_port(host or "127.0.0.1", port)
    app = build_app(load_side_by_side(model, vpp=vpp), inside=model == "pocket")
    system = ["system-ui", "sans-serif"]  # the themes' own fonts come from the network
    theme = gradio.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])
    app.launch(server_name=host, server_port=port, theme=theme, allowed_paths=[str(FOLDER)], ssr_mode=False)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise VPPError(
                f"port {port} of {host} cannot be had ({error.strerror}): name another by --port, or leave it out for "
                "the first free one."
            ) from None


def export_app(out: str | Path, model: str = "pocket", *, vpp: str | None = None) -> Path:
    """Write a folder that a hosting service of Gradio apps takes as it is, and return it.

    Beside app.py, requirements.txt and README.md it holds this library, so that no index has to. A folder of a model or
    of prompts is copied in; a hub id stays one, and is fetched there. Raises VPPError where `out` holds anything
    already, and for a model's folder without a config.json.
    """
    gradio, folder = _gradio(), Path(out)
    if folder.exists():
        raise VPPError(f"'{folder}' is there already: name a new folder.")
    if Path(model).is_dir() and not Path(model, "config.json").is_file():
        raise VPPError(f"'{model}' is a folder without a model's config.json: name one with it, or a hub id.")
    if vpp is not None and not Path(vpp, "vpp_config.json").is_file():
        raise VPPError(f"'{vpp}' holds no vpp_config.json: name a folder that save_vpp wrote.")
    with whole_folder(folder) as work:
        names = {"model": _brought(model, work / "model"), "vpp": None if vpp is None else _brought(vpp, work / "vpp")}
        (work / "app.py").write_text(SCRIPT.format(**names))
        (work / "README.md").write_text(README.format(gradio=gradio.__version__, model=json.dumps(Path(model).name)))
        (work / "requirements.txt").write_text("\n".join(_bring_library(work)) + "\n")
    return folder


def _brought(source: str, place: Path) -> str:
    """Return the name under which the exported app finds a model: that of its copy, or as it was."""
    if not Path(source).is_dir():
        return source
    shutil.copytree(source, place)
    return place.name


def _bring_library(folder: Path) -> list[str]:
    """Copy the library with its entry points into a folder, from where Python finds both; returns what it requires."""
    from packaging.requirements import Requirement

    installed = distribution("vpp-plugins")
    for name in ("vpp_plugins", "vpp_adapters"):
        source = Path(str(import_module(name).__file__)).parent
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / f"vpp_plugins-{installed.version}.dist-info"
    info.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (info / name).write_text(installed.read_text(name) or "")
    wanted = [Requirement(line) for line in installed.requires or ()]
    chosen = [one for one in wanted if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in EXTRAS)]
    return sorted(f"{one.name}{one.specifier}" for one in chosen if one.name != installed.name)


def _gradio() -> Any:
    """Import gradio, which asks its makers for news unless it is told not to."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with named_extras():
        import gradio
    return gradio
