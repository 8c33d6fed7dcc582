"""`import vpp_plugins` is light and silent: checked in processes of their own, where nothing is imported yet."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from vpp_plugins.errors import EXTRAS, install_command

ROOT = Path(__file__).parent.parent

HOST_LIBRARIES = ["accelerate", "datasets", "peft", "timm", "torchvision", "transformers", "xformers"]
REPORT_LOADED = f"""
import sys
print(*[name for name in {[*HOST_LIBRARIES, "vpp_adapters"]} if name in sys.modules])
"""


def run_python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter in which a warning is an error."""
    words = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)


def test_import_pulls_in_no_host_library_and_no_adapter() -> None:
    finished = run_python("import vpp_plugins\n" + REPORT_LOADED)

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []


def test_the_check_above_sees_an_import() -> None:
    finished = run_python("import sys; sys.modules['timm'] = sys\n" + REPORT_LOADED)

    assert finished.stdout.split() == ["timm"]


def test_import_works_where_no_host_library_is_installed() -> None:
    finished = run_python(f"""
import sys
sys.modules.update(dict.fromkeys({HOST_LIBRARIES}))  # None in sys.modules: importing it raises ImportError
import vpp_plugins
""")

    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("module", ["vpp_plugins", "vpp_adapters"])
def test_import_prints_and_warns_nothing(module: str) -> None:
    finished = run_python(f"import {module}")

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_import_leaves_torch_as_it_was() -> None:
    finished = run_python("""
import torch
before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
import vpp_plugins
after = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
assert torch.equal(before[0], after[0]), "the random state moved"
assert before[1:] == after[1:], f"{before[1:]} became {after[1:]}"
""")

    assert finished.returncode == 0, finished.stderr


def test_the_command_line_starts_without_torch() -> None:
    """Its help must come at once, within 0.2 s; torch alone takes seconds, and rich as long as all the rest."""
    help_text = "import vpp_plugins.cli, sys; vpp_plugins.cli.app(['--help'], standalone_mode=False)"
    finished = run_python(f"{help_text}; print([name for name in ('torch', 'rich', 'numpy') if name in sys.modules])")

    assert (finished.returncode, finished.stdout.splitlines()[-1]) == (0, "[]"), finished.stderr


DOORS = [
    ("from vpp_plugins import attach_vpp; attach_vpp(Host())", "transformers", "demo"),
    ("from vpp_plugins import attach_vpp; attach_vpp(Host(), adapter='llava')", "transformers", "demo"),
    ("from vpp_plugins import VPPProcessor; VPPProcessor(object(), Host())", "transformers", "demo"),
    ("from vpp_plugins import Grounder; Grounder(Host(), object())", "transformers", "demo"),
    ("from vpp_plugins.plugins import build_generator; build_generator('detr', 2, {})", "timm", "demo"),
    ("from vpp_plugins.pocket import load_pocket", "transformers", "demo"),
    ("from vpp_plugins.train import train", "rich", "train"),
    ("from vpp_plugins.evaluate import load_grounder; load_grounder('model')", "accelerate", "eval"),
    ("vpp('ground', '--image', 'photo.png', '--expr', 'cup')", "transformers", "demo"),
    ("vpp('demo')", "rich", "demo"),
    ("vpp('app')", "gradio", "app"),
    ("vpp('eval', 'run')", "accelerate", "eval"),
    ("vpp('train', 'recipe.toml')", "transformers", "train"),
    ("vpp('study', 'study.toml')", "transformers", "train"),
]
GONE = [*HOST_LIBRARIES, "gradio", "huggingface_hub", "rich", "safetensors", "tokenizers", "trl"]
WITHOUT_EXTRAS = f"""
import json, sys, warnings
warnings.simplefilter("error")

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {GONE}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Gone())

import torch
from vpp_plugins.cli import app
from vpp_plugins.errors import MissingExtraError, named_extras

class Host(torch.nn.Module):
    pass

def vpp(*words):
    with named_extras():
        app(words, standalone_mode=False)

said = []
for door in {[door for door, _, _ in DOORS]}:
    try:
        exec(door)
    except BaseException as error:
        said.append(f"{{type(error).__name__}}: {{error}}")
print(json.dumps(said))
"""


def test_without_an_extra_every_public_door_and_command_names_it(tmp_path: Path) -> None:
    """Six warnings and a bare ModuleNotFoundError came instead."""
    Image.new("RGB", (50, 50)).save(tmp_path / "photo.png")
    (tmp_path / "recipe.toml").write_text("model = 'm'\ndata = 'd'\noutput_dir = 'o'\nmax_steps = 1\n")
    study = "recipe = 'recipe.toml'\noutput_dir = 'o'\nseeds = [0]\narms.a.vpp = 'none'\narms.b = {}\n"
    (tmp_path / "study.toml").write_text(study + "sets.s.data = 'photos'\n")

    finished = run_python(WITHOUT_EXTRAS, cwd=tmp_path)

    assert finished.returncode == 0, finished.stderr
    expected = [
        f"MissingExtraError: this needs {name}, which the extra '{extra}' installs: {install_command(extra)}."
        for _, name, extra in DOORS
    ]
    assert json.loads(finished.stdout.splitlines()[-1]) == expected


def test_what_an_extra_installs_is_known_to_the_sentence_about_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known: set[str] = set()
    for extra in ("demo", "train", "eval", "captions", "all", "app"):
        known |= set(EXTRAS.get(extra, "").split())
        packages = {re.split(r"[\[><=;]", line)[0].replace("-", "_") for line in extras[extra]} - {"vpp_plugins"}
        assert packages <= known, f"errors.EXTRAS[{extra!r}] lacks {packages - known}"


def test_every_public_name_is_found_and_listed() -> None:
    finished = run_python(
        "import vpp_plugins as v; print(set(v.__all__) <= set(dir(v)), [type(getattr(v, n)) for n in v.__all__])"
    )

    assert finished.stdout.split()[0] == "True", finished.stderr


def test_a_name_that_is_not_there() -> None:
    finished = run_python("import vpp_plugins; vpp_plugins.attach_vp")

    assert "module 'vpp_plugins' has no attribute 'attach_vp'" in finished.stderr
