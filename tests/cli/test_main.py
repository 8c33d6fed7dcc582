"""What holds for every command."""

import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run
from vpp_plugins import __version__, cli
from vpp_plugins.errors import install_command
from vpp_plugins.train.recipe import Recipe
from vpp_plugins.train.trial import NEED_NUMBERS


def test_plugins_lists_the_adapters_and_their_modules(vpp: Run) -> None:
    code, out, err = vpp("plugins")

    assert (code, err) == (0, "")
    lines, attentions = out.splitlines()[:-2], out.splitlines()[-2:]
    generators = [line for line in lines if "\ta generator of the local prompt, from " in line]
    adapters = [line for line in lines if line not in generators]
    assert "llava\tvpp_adapters.llava" in adapters
    assert "nanodet\ta generator of the local prompt, from nanodet" in generators
    assert lines == sorted(adapters) + sorted(generators)
    assert [line.partition("\t")[0] for line in attentions] == ["attention on CUDA", "attention elsewhere"]


def test_the_version_is_said(vpp: Run) -> None:
    assert vpp("--version") == (0, f"{__version__}\n", "")


def test_a_folder_without_permission_is_named(vpp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "photos")  # root, as whom tests may run, reads everything

    monkeypatch.setattr(cli, "app", denied)
    code, _, err = vpp("ground", "--images", "photos", "--expr", "the cup")

    assert code == 1
    assert err == "vpp: 'photos' may not be read or written by you: change its permissions, or name another place.\n"


def test_what_cannot_be_fetched_is_named(vpp: Run) -> None:
    code, _, err = vpp("fetch", "smolm2")

    assert code == 1
    assert err == "vpp: nothing to fetch is called 'smolm2'. Did you mean 'smollm2'? Known: smollm2.\n"


def test_a_warning_of_ours_is_its_sentence(vpp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came with a place in the code and the line that stands there."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    vpp("--version")

    ours, theirs = Path(cli.__file__).with_name("eval.py"), Path(torch.__file__)
    assert warnings.formatwarning(UserWarning("Mind."), UserWarning, str(ours), 87) == "Warning: Mind.\n"
    assert warnings.formatwarning(UserWarning("Mind."), UserWarning, str(theirs), 3).endswith("3: UserWarning: Mind.\n")


def test_what_fetch_says_to_run_can_be_pasted(vpp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell took the quotes out of `--set losses=["pointing:1"]`, and the recipe was refused."""
    monkeypatch.setattr("vpp_plugins.pocket.fetch_smollm2", lambda folder, **_: folder)

    _, out, _ = vpp("fetch", "smollm2", "--no-numbers", "--out", "my models/smollm2")

    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("vpp train ")]
    align, told = (
        Recipe.load(recipe, changes=[word for word in changes if word != "--set"])
        for _, _, recipe, *changes in commands
    )
    ours = Recipe.load("smollm2-lora.toml")
    assert "vpp data chats out/smollm2-chats.jsonl --model 'my models/smollm2'" in out.splitlines()
    assert [entry["data"] for entry in told.mix] == ["out/smollm2-chats.jsonl"]
    assert align.model == "my models/smollm2"
    assert told.model == ours.model == f"{align.output_dir}/final"
    assert {*ours.losses} - {*told.losses} == {loss for loss in ours.losses if loss.partition(":")[0] in NEED_NUMBERS}


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("ground",),
        ("demo",),
        ("fetch",),
        ("plugins",),
        ("convert",),
        ("data",),
        ("data", "scenes"),
        ("data", "chats"),
        ("compare",),
        ("study",),
        ("study", "run"),
    ],
)
def test_every_command_explains_itself(vpp: Run, command: Sequence[str]) -> None:
    code, out, _ = vpp(*command, "--help")

    assert code == 0
    assert "Usage: vpp" in out
    assert max(map(len, out.splitlines())) <= 80
    assert not [line for line in out.splitlines() if line.endswith("...") and line.startswith("  ")], "cut off"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("grond",),
        ("ground",),
        ("ground", "--expr", "cup"),
        ("data", "scenes", "--shapes"),
        ("data", "scenes", "--out", "new", "--split", "tset"),
        ("data", "scenes", "--out", "new", "--count", "0"),
        ("data", "scenes", "--out", "new", "--count", "three"),
    ],
)
def test_wrong_words_are_explained_with_exit_code_2(vpp: Run, words: Sequence[str]) -> None:
    code, out, err = vpp(*words)

    assert code == 2
    assert "Usage: vpp" in out + err
    assert "Traceback" not in out + err


def test_in_a_process_of_its_own_there_is_no_traceback(tmp_path: Path) -> None:
    words = ["-c", "from vpp_plugins.cli import main; main()", "ground", "--image", "missing.jpg", "--expr", "cup"]

    finished = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert finished.returncode == 1
    assert finished.stderr == "vpp: 'missing.jpg' does not exist: give the path of an image.\n"


def test_without_typer_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; import vpp_plugins.cli"

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert finished.stderr == f"The command line needs typer: {install_command('demo')}.\n"


@pytest.mark.parametrize(("own", "found"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_that_wait_leave_the_core_to_others(own: dict[str, str], found: str) -> None:
    """A demo beside busy processes used six times the time of a quiet one: torch's threads spun while they waited."""
    code = """
import sys
from vpp_plugins.cli import main
sys.argv = ["vpp", "plugins", "--help"]
try:
    main()
except SystemExit:
    import os
    print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | own

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)

    assert finished.stdout.splitlines()[-1] == f"{found} False"
