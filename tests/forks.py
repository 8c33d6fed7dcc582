"""Work in forked processes, which need not import anything: killed, and begun again. Imported as `tests.forks`."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable


def in_a_fork(work: Callable[[], object]) -> int:
    """Begin in a process of its own, which ends with 0, or with 1 and a traceback; returns its id."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of threads that this child never uses
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing may go on in the child
            traceback.print_exc()
            os._exit(1)
    return child


def in_a_child(work: Callable[[], object]) -> int:
    """Run in a forked process to its end; returns 0, the signal that killed it (negative), or 1."""
    return os.waitstatus_to_exitcode(os.waitpid(in_a_fork(work), 0)[1])
