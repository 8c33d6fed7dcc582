"""Run the tutorial as its page says, in an empty folder: `make tutorial`. A command that fails ends it.

`make tutorial ARGS=docs/smollm2.md` runs the second page. With `--write` among ARGS, what was printed and the images
that were made are also written back into the page, and into the notebook of the first.

Lines of a `console` block that begin with `$ ` are commands, which go on after a backslash; a `text` block after a
`python` block has its output; a comment `<!-- FILE -->` before an image names the file that it shows.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE, NOTEBOOK = ROOT / "docs/tutorial.md", Path(__file__).with_name("tutorial.ipynb")
LINKS = {"examples": "examples", "photographs": "vpp_plugins/data/scenes/real_photos"}
"""What the folder holds before the first command."""
WIDTH = 110
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*\n)", re.MULTILINE)
SHOWN = re.compile(r"<!-- (\S+) -->\n!\[[^]]*]\(([^)#\s]+)")
_PROGRESS = re.compile(r"[\u2801-\u28ff]|━{5,} .*\d|\d+%\||^\[transformers]|^\s*$")
"""Lines of bars and spinners, of transformers' own remarks, and empty ones: not shown."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE, help="which page; docs/tutorial.md unless named")
    parser.add_argument("--write", action="store_true", help="bring the page, its images and the notebook up to date")
    args = parser.parse_args()
    page = args.page.read_text()
    with tempfile.TemporaryDirectory() as folder:
        for name, target in LINKS.items():
            (Path(folder) / name).symlink_to(ROOT / target)
        ran = run_page(page, Path(folder))
        if args.write:
            for file, shown in SHOWN.findall(page):
                save_image(Path(folder, file), args.page.parent / shown)
    if args.write:
        args.page.write_text(ran)
    if args.write and args.page.resolve() == PAGE:
        NOTEBOOK.write_text(json.dumps(notebook(ran), indent=1, ensure_ascii=False) + "\n")


def run_page(page: str, folder: Path) -> str:
    """Run every block in order, and return the page with what they print now."""
    return BLOCK.sub(lambda found: _run_block(found, folder), page)


def _run_block(found: re.Match[str], folder: Path) -> str:
    kind, text, _ = found.groups()
    if kind == "python":
        return f"```python\n{text}```\n\n```text\n{run([sys.executable, '-c', text], folder)}```\n"
    ran = [f"$ {command}{run(['bash', '-c', command], folder)}" for command in COMMAND.findall(text)]
    return f"```console\n{''.join(ran)}```\n"


def run(words: list[str], folder: Path) -> str:
    """Return what a command prints, without its progress; a command that fails ends the program."""
    print("$", words[-1].rstrip(), flush=True)
    own = str(Path(sys.executable).parent)
    settings = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**os.environ, **settings, "PATH": f"{own}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"It ended with exit code {done.returncode}.")
    if "```" in done.stdout:
        sys.exit("What it prints would end its block on the page: print less of it.")
    lines = re.split(r"[\r\n]", done.stdout.replace(str(folder), "."))
    return "".join(f"{line.rstrip()}\n" for line in lines if not _PROGRESS.search(line))


def save_image(source: Path, target: Path) -> None:
    """Save an image small, or the upper part of a page as Chromium shows it: dark where the target's name says so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".html":
        chromium = shutil.which("chromium")
        if chromium is None:
            print(f"{target} stays as it is: there is no Chromium to show {source.name}.")
            return
        taken = source.with_suffix(".png")
        scheme = f"--blink-settings=preferredColorScheme={int('dark' not in target.stem)}"
        words = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,1300", f"--screenshot={taken}"]
        subprocess.run([chromium, scheme, *words, source.as_uri()], check=True, capture_output=True)
        source = taken
    with Image.open(source) as image:
        image.thumbnail((1100, 1300))
        image.convert("RGB").save(target, quality=80)


def notebook(page: str) -> dict[str, Any]:
    """Return the page as a notebook with its outputs, to be opened in the clone's root."""
    cells, start = [], 0
    for found in BLOCK.finditer(page):
        cells += [_words(page[start : found.start()]), _code(*found.groups())]
        start = found.end()
    cells.append(_words(page[start:]))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def _words(text: str) -> dict[str, Any]:
    one = re.sub(r"<!-- \S+ -->\n.*#only-dark\)\n|#only-light", "", text.strip())  # a notebook would show both
    near = re.sub(r"]\((?!http)(images/\S+|\S+\.md\S*)\)", r"](../../docs/\1)", one)
    return {"cell_type": "markdown", "metadata": {}, "source": near.splitlines(keepends=True)}


def _code(kind: str, text: str, printed: str | None) -> dict[str, Any]:
    if kind == "console":
        source = "".join(f"!{command}" for command in COMMAND.findall(text)).splitlines(keepends=True)
        output = COMMAND.sub("", text).splitlines(keepends=True)
    else:
        source, output = text.splitlines(keepends=True), (printed or "").splitlines(keepends=True)
    source[-1] = source[-1].rstrip("\n")
    outputs = [{"output_type": "stream", "name": "stdout", "text": output}] if output else []
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "source": source, "outputs": outputs}


if __name__ == "__main__":
    main()
