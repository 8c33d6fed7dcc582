"""Whatever reads what others wrote, fuzzed: a right result or one sentence, soon, and never another exception.

VPP_FUZZ_SECONDS is for how long each is fuzzed; 60 unless set.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fuzz_targets import TARGETS

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("VPP_FUZZ_SECONDS", "60"))
ROOT = Path(__file__).parents[2]
HEAD = f"{'target':26} {'inputs':>8} {'outcomes':>8} {'seconds':>7} {'MB':>6}"


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("atheris")
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(0)  # as long as was asked for, and each input has its own limit
@pytest.mark.parametrize("kind", list(dict.fromkeys(name.split()[0] for name in TARGETS)))
def test_nothing_is_found(kind: str, record_property: Callable[[str, object], None]) -> None:
    done = fuzz("-m", "tests.faults.fuzzing", str(SECONDS), kind)
    for line in (HEAD, *done.stdout.splitlines()):
        record_property("fuzzing", line)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert len(done.stdout.splitlines()) == sum(name.split()[0] == kind for name in TARGETS)


BROKEN = """
import time
from tests.faults.fuzzing import in_a_child
from vpp_plugins.errors import VPPError

def raising(data):
    if b"!" in data:
        raise KeyError("not the library's own error")

def of_two_lines(data):
    if b"!" in data:
        raise VPPError("one" + chr(10) + "two")

def slow(data):
    if b"!" in data:
        sum(range(10**9))

def good(data):
    if b"!" in data:
        raise VPPError("one sentence.")

for one in (raising, slow, good, of_two_lines):
    print(in_a_child(one.__name__, lambda folder: (one, [b"a!"[:1], b"?"]), 3))
"""


@pytest.mark.timeout(300)
def test_a_finding_is_reported() -> None:
    done = fuzz("-c", BROKEN)
    lines = [line.split()[0] for line in done.stdout.splitlines() if line in ("True", "False")]
    assert lines == ["False", "False", "True", "True"], done.stdout + done.stderr[-3000:]
    assert "FAILED" in done.stdout
    assert "KeyError" in done.stderr
