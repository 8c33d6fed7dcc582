"""`import vpp_plugins` is light and silent: checked in processes of their own, where nothing is imported yet."""

import subprocess
import sys

import pytest

HOST_LIBRARIES = ["accelerate", "datasets", "peft", "timm", "torchvision", "transformers", "xformers"]
REPORT_LOADED = f"""
import sys
print(*[name for name in {[*HOST_LIBRARIES, "vpp_adapters"]} if name in sys.modules])
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter in which a warning is an error."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


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
    """Its help must come at once; torch alone takes seconds."""
    finished = run_python("import vpp_plugins.cli, sys; print('torch' in sys.modules)")

    assert (finished.returncode, finished.stdout.strip()) == (0, "False"), finished.stderr


def test_every_public_name_is_found_and_listed() -> None:
    finished = run_python(
        "import vpp_plugins as v; print(set(v.__all__) <= set(dir(v)), [type(getattr(v, n)) for n in v.__all__])"
    )

    assert finished.stdout.split()[0] == "True", finished.stderr


def test_a_name_that_is_not_there() -> None:
    finished = run_python("import vpp_plugins; vpp_plugins.attach_vp")

    assert "module 'vpp_plugins' has no attribute 'attach_vp'" in finished.stderr
