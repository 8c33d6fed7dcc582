"""The command, run in this process as a shell would."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from vpp_plugins.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    printed: str
    complained: str


def vpp(*words: str | Path) -> Ended:
    """Run `vpp WORDS`."""
    printed, complained, code = io.StringIO(), io.StringIO(), 0
    redirected = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained)
    with patch.object(sys, "argv", ["vpp", *map(str, words)]), redirected[0], redirected[1]:
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ended(code, printed.getvalue(), complained.getvalue())
