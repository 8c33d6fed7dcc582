"""Fuzz all targets whose names begin so: `python -m tests.faults.fuzzing 60 codec "data coco"`.

Printed for each: inputs tried, distinct outcomes, seconds, and megabytes. Atheris instruments the library as it is
imported, and ends the process where it finds something.
"""

import contextlib
import gc
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import atheris

Target: TypeAlias = Callable[[Path], tuple[Callable[[bytes], object], list[bytes]]]

SLOWEST = 10.0
"""CPU seconds that one input may take in instrumented code, on a busy machine."""
MEMORY_MB = 3000
LONGEST = 4000
"""Bytes of an input."""
ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, -1e308, 1e-320, 2**63, 10**400, float("nan"), float("inf"), "", "a",
    "0", "\ud800", "../x.jpg", "/x.jpg", "a.jpg", "x" * 300, [], {}, [[]], [0, 0, 0, 0], [1, 2, 3], [4, 3, 2, 1],
    ["1", 2, 3, 4],
]  # fmt: skip


def changed(value: Any, draw: random.Random) -> Any:
    """Put an odd value in one place of a JSON value, or take one out, or repeat one."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.2:
        return draw.choice(ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, what = draw.choice(keys), draw.random()
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if what < 0.1:
        del copy[key]
    elif what < 0.2 and isinstance(copy, list):
        copy.insert(key, copy[key])
    else:
        copy[key] = changed(copy[key], draw)
    return copy


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """Change JSON, or a line of JSON lines, as JSON; anything else, and every other input, as the fuzzer does."""
    draw = random.Random(seed)
    before, text = (data[:1], data[1:]) if data[:1].isdigit() else (b"", data)
    if draw.random() < 0.5:
        lines = [text] if draw.random() < 0.5 else text.split(b"\n")
        number = draw.randrange(len(lines))
        try:
            lines[number] = json.dumps(changed(json.loads(lines[number]), draw)).encode()
            return (before + b"\n".join(lines))[:most]
        except (ValueError, RecursionError):
            pass
    return bytes(atheris.Mutate(data, most))


def outcome(read: Callable[[bytes], object], data: bytes) -> object:
    """Return what came of the bytes, without the names and numbers of a sentence."""
    from vpp_plugins.errors import VPPError

    began = time.process_time()
    try:
        found = read(data)
    except VPPError as error:
        said = str(error)
        said.encode()
        assert said.strip(), "an error without a sentence"
        assert "\n" not in said, f"an error of several lines: {said}"
        assert len(said) < 3000, f"an error of {len(said)} characters: {said[:200]}"
        found = type(error).__name__, re.sub(r"'[^']*'|\(.*\)|\d+", "", said)[:60]
    took = time.process_time() - began
    assert took < SLOWEST, f"{took:.1f} s for {len(data)} bytes"
    return found


def fuzz(target: Target, seconds: float) -> None:
    """Try inputs for so long, print the figures, and end the process; a finding ends it with a traceback."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        read, seeds = target(Path.cwd())
    Path("corpus").mkdir()
    for number, seed in enumerate(seeds):
        Path("corpus", str(number)).write_bytes(seed)
    outcomes, tries, began = {repr(outcome(read, seed)) for seed in seeds}, 0, time.monotonic()

    def one(data: bytes) -> None:
        nonlocal tries
        tries += 1
        outcomes.add(repr(outcome(read, data)))
        if (spent := time.monotonic() - began) > seconds:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{tries:>9,} {len(outcomes):>8,} {spent:>7.1f} {memory:>6,}", flush=True)
            os._exit(0)

    most = max(LONGEST, 2 * max(map(len, seeds)))
    options = [f"-max_len={most}", "-timeout=120", f"-rss_limit_mb={MEMORY_MB}", "-verbosity=0", "corpus"]
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutated)
    atheris.Fuzz()


def in_a_child(name: str, target: Target, seconds: float) -> bool:
    """Fuzz in a forked process and a folder of its own; what it finds stays its own, and importing is done once."""
    print(f"{name:26}", end="", flush=True)
    if (child := os.fork()) == 0:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            fuzz(target, seconds)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        print(f" FAILED ({status})", flush=True)
    return status == 0


if __name__ == "__main__":
    with atheris.instrument_imports(include=["vpp_plugins"]):
        from tests.faults.fuzz_targets import TARGETS
    gc.freeze()  # else every child looks through, and so copies, all that was imported
    chosen = [name for name in TARGETS if name.startswith(tuple(sys.argv[2:]))]
    clean = [in_a_child(name, TARGETS[name], float(sys.argv[1])) for name in chosen]
    sys.exit(not all(clean))
