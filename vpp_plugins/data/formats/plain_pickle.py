"""Pickles of plain data, such as the REFER toolkit's `refs(unc).p`, read so that they can run nothing."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vpp_plugins.errors import VPPError

_PLAIN = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2,
    pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT,
    pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.BINUNICODE8,
    pickle.SHORT_BINUNICODE, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS,
    pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE,
)  # fmt: skip


def _with_plain_keys(code: bytes) -> Callable[[Any], None]:
    """Let a code set entries of dictionaries under strings and numbers only.

    Tuples within tuples, each twice in the next, take for ever to hash, in a file of some bytes.
    """
    load = pickle._Unpickler.dispatch[code[0]]

    def load_checked(unpickler: Any) -> None:
        keys = unpickler.stack[-2:-1] if code == pickle.SETITEM else unpickler.stack[::2]
        if not all(isinstance(key, str | bytes | int | float) for key in keys):
            raise TypeError("a key that is no string and no number")
        load(unpickler)

    return load_checked


class _PlainUnpickler(pickle._Unpickler):
    """Knows only the codes for containers, strings and numbers: a code that names or calls something is unknown to it.

    In Python, not C: there a memo is a dictionary, and one large index in a small file cannot claim all memory.
    """

    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _PLAIN} | {
        code[0]: _with_plain_keys(code) for code in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT)
    }


def load_plain_pickle(path: Path) -> Any:
    """Return the lists, tuples, dictionaries, strings and numbers of a pickle, Python 2's included.

    Raises VPPError for a pickle that holds anything else, without running it, and for a broken one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VPPError(f"'{path}' cannot be read ({error.strerror}).") from None
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except KeyError:
        raise VPPError(
            f"'{path}' is not a pickle of plain lists, dictionaries, strings and numbers; it is refused unread, since "
            "anything else in a pickle can run code."
        ) from None
    except Exception as error:  # noqa: BLE001  (a broken pickle makes the machine inside stumble in any way)
        raise VPPError(f"'{path}' is a broken pickle ({type(error).__name__}). Download it again.") from None
