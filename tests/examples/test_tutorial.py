import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from examples.tutorial import run as tutorial
from vpp_plugins.cli import app

PAGE = tutorial.PAGE.read_text()
SECOND = tutorial.PAGE.with_name("smollm2.md").read_text()


def blocks(page: str) -> list[tuple[str, str, str]]:
    return [found.groups() for found in tutorial.BLOCK.finditer(page)]


def commands(page: str) -> list[str]:
    return [
        command for kind, text, _ in blocks(page) if kind == "console" for command in tutorial.COMMAND.findall(text)
    ]


@pytest.mark.parametrize(("page", "least"), [(PAGE, 15), (SECOND, 9)], ids=["first", "second"])
def test_every_block_shows_what_it_printed(page: str, least: int) -> None:
    assert len(commands(page)) >= least
    for kind, text, printed in blocks(page):
        assert printed if kind == "python" else tutorial.COMMAND.sub("", text), text


@pytest.mark.parametrize("command", [one for one in commands(PAGE) + commands(SECOND) if one.startswith("vpp ")])
def test_every_option_on_the_page_is_one_of_the_command(command: str) -> None:
    words = shlex.split(command.replace("\\\n", "").partition(" || ")[0])[1:]
    found = typer.main.get_command(app)
    while isinstance(found, TyperGroup) and words and words[0] in found.commands:
        found, words = found.commands[words[0]], words[1:]
    if isinstance(found, TyperGroup):  # `vpp eval` alone is `vpp eval run`
        found = found.commands["run"]
    assert found.make_context(command, words).params
    with pytest.raises(Exception, match="No such option: --nothing"):
        found.make_context(command, [*words, "--nothing"])


def test_its_images_are_in_the_repository() -> None:
    images = tutorial.SHOWN.findall(PAGE + SECOND)
    assert len(images) == 6  # two pages in light and dark, two photographs
    assert all((tutorial.PAGE.parent / image).is_file() for _, image in images)


def test_the_notebook_is_the_page() -> None:
    assert json.loads(tutorial.NOTEBOOK.read_text()) == tutorial.notebook(PAGE)


def test_the_page_begins_with_two_planted_faults_that_the_doctor_finds() -> None:
    assert "inverted boxes: 1 of" in PAGE
    assert "unreadable images: 1 of" in PAGE


class TestRunning:
    PAGE = (
        "Words.\n\n```console\n$ echo \\\n    new; printf '1%%|\\r' >&2\nold\n$ cat made\n```\n"
        "\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    )

    def test_a_page_comes_back_with_what_its_blocks_print_now(self, tmp_path: Path) -> None:
        (tmp_path / "made").write_text(f"in {tmp_path}\n")

        ran = tutorial.run_page(self.PAGE, tmp_path)

        expected = (
            self.PAGE.replace("old\n", "new\n").replace("$ cat made\n", "$ cat made\nin .\n").replace("3\n", "2\n")
        )
        assert ran == expected

    def test_a_command_that_would_end_its_block_ends_it(self, tmp_path: Path) -> None:
        (tmp_path / "made").write_text("```\n")

        with pytest.raises(SystemExit, match="would end its block"):
            tutorial.run_page(self.PAGE, tmp_path)

    def test_a_command_that_fails_ends_it(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="exit code 1"):
            tutorial.run_page(self.PAGE, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/smollm2.md"])
def test_every_command_of_the_page_runs(page: str) -> None:
    words = [sys.executable, "-m", "examples.tutorial.run", page]
    ran = subprocess.run(words, cwd=tutorial.ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr
    assert re.search(r"<Grounding 'the (dog|giraffe on the right)'", ran.stdout)
