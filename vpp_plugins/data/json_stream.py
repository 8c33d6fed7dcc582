"""JSON files of any size, element by element.

`ijson` (3.6, yajl) is as fast, but ends at NaN and at whole numbers beyond 64 bits, which is one faulty sample here and
the end of the file there, puts a question mark for half a character, names no line, and has no bound on nesting.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Never

from vpp_plugins.errors import VPPError, named_extras
from vpp_plugins.files import unique_keys

_CHUNK = 1 << 20
LARGEST_ELEMENT = 64 << 20
"""Characters that one element (a sample) may have; beyond it the file is taken for broken, not for large."""


def stream_array(path: Path, key: str = "", *, largest: int = LARGEST_ELEMENT) -> Iterator[Any]:
    """Yield the elements of a JSON array without holding the file: the top-level one, or the one under `key`.

    Raises VPPError, with line and column, where the file is not JSON or a key stands twice in an object, and with a
    sentence where it is empty, is not in UTF-8, or holds no such array.
    """
    with _opened(path) as file:
        scanner = _Scanner(path, file, largest)
        opening = scanner.peek()
        if opening != ("{" if key else "["):
            wanted = f'an object with an array "{key}"' if key else "an array of samples"
            raise VPPError(f"'{path}' should be {wanted}, and begins with {opening!r}. Is it another format?")
        yield from scanner.under(key) if key else scanner.elements()
        if scanner.peek():
            scanner.fail(f"something after the end of the {'object' if key else 'array'}")


def stream_lines(path: Path, *, largest: int = LARGEST_ELEMENT) -> Iterator[Any]:
    """Yield the JSON value of each line that is not blank. Raises VPPError with line and column as `stream_array`."""
    with _opened(path) as file:
        empty = True
        for number, line in enumerate(iter(lambda: file.readline(largest + 1), b""), start=1):
            if len(line) > largest:
                raise VPPError(f"'{path}', line {number}, is longer than {largest:,} bytes. Is it another format?")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, f"line {number}", error) from None
            if text:
                empty = False
                yield _parsed(f"'{path}'", text, number)
        if empty:
            raise VPPError(f"'{path}' is empty.")


def json_value(data: bytes, name: str) -> Any:
    """Return the value of one line, or of a small file; raises VPPError that calls it by its name."""
    try:
        return _parsed(name, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise VPPError(f"{name} is not UTF-8 text ({error.reason}).") from None


def stream_records(path: Path, *, largest: int = LARGEST_ELEMENT) -> Iterator[Any]:
    """Yield the elements of a JSON array or of JSON lines, whichever the file is."""
    with _opened(path) as file:
        opening = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return (stream_array if opening == b"[" else stream_lines)(path, largest=largest)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise VPPError(f"'{path}' does not exist.") from None
    except IsADirectoryError:
        raise VPPError(f"'{path}' is a folder, and a file is expected.") from None
    except (OSError, ValueError) as error:  # no permission, a loop of links, a name with a zero byte
        raise VPPError(f"'{path}' cannot be opened ({error}).") from None
    with file:
        yield file


class _Scanner:
    """A window on the text of a file, from which JSON values are taken in turn.

    A value that the window cuts off looks like broken JSON, so on an error more is read and the value tried again;
    each time the window doubles, so that the work stays linear.
    """

    def __init__(self, path: Path, file: IO[bytes], largest: int) -> None:
        self.path, self.largest = path, largest
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at = "", 0
        self._lines, self._columns, self._bytes = 0, 0, 0  # before the window
        self._ended = False

    def peek(self) -> str:
        """Skip blanks, and return the next character, or "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                if not self._bytes:
                    raise VPPError(f"'{self.path}' is empty.")
                return ""

    def take(self, character: str) -> None:
        if self.peek() != character:
            self.fail(f"expected {character!r}")
        self._at += 1

    def value(self) -> Any:
        """Return the next JSON value."""
        self.peek()
        while True:
            try:
                start = self._at
                value, end = _DECODER.raw_decode(self._text, start)
            except RecursionError:
                self.fail("nested too deeply")
            except json.JSONDecodeError as error:
                ahead, left = error.pos - self._at, len(self._text) - self._at
                if left > self.largest or not self._more(left + _CHUNK):
                    self._at += min(ahead, left)
                    self.fail(error.msg)
                continue
            except ValueError as error:
                self.fail(str(error))
            cut = isinstance(value, int | float) and end > len(self._text) - len("e+1")
            if cut and self._more(_CHUNK):  # the number may go on
                continue
            self._at = self._at + end - start
            return value

    def elements(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self._at += 1
                return
            self.take(",")

    def under(self, key: str) -> Iterator[Any]:
        """Yield the elements of the array under a key of the next object, and skip what else is in there."""
        names: list[Any] = []
        found = False
        self.take("{")
        while self.peek() != "}":
            name = self.value()
            if name in names:
                self.fail(f"the key {name!r} stands twice")
            names.append(name)
            self.take(":")
            if name == key and self.peek() == "[":
                found = True
                yield from self.elements()
            else:
                self._skip()
            if self.peek() != "}":
                self.take(",")
        self.take("}")
        if not found:
            raise VPPError(f"'{self.path}' holds no array named '{key}'. Is it another format?")

    def _skip(self) -> None:
        """Skip a value; an array by its elements, so that it need not fit the window."""
        if self.peek() == "[":
            for _ in self.elements():
                pass
        else:
            self.value()

    def fail(self, reason: str) -> Never:
        before = self._text[: self._at]
        line = 1 + self._lines + before.count("\n")
        column = 1 + (len(before) - before.rfind("\n") - 1 if "\n" in before else self._columns + len(before))
        reason = reason if self._at < len(self._text) else f"{reason}, but the file ends: is it complete?"
        raise VPPError(f"'{self.path}' is not valid JSON at line {line}, column {column}: {reason}")

    def _more(self, count: int) -> bool:
        """Drop what was read, and add to the window; returns False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(count)
        try:
            text = self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, f"around byte {self._bytes + error.start:,}", error) from None
        self._ended = not data
        self._bytes += len(data)
        gone = self._text[: self._at]
        if "\n" in gone:
            self._lines += gone.count("\n")
            self._columns = len(gone) - gone.rfind("\n") - 1
        else:
            self._columns += len(gone)
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(data)


def _whole_number(digits: str) -> int | float:
    """Python refuses integers of thousands of digits; as floats they are infinite, and found so."""
    return int(digits) if len(digits) < 300 else float(digits)


_DECODER = json.JSONDecoder(parse_int=_whole_number, object_pairs_hook=unique_keys)


def _parsed(name: str, text: str, line: int = 1) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise VPPError(f"{name} is not valid JSON at line {at}, column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise VPPError(f"{name} is not valid JSON at line {line}: {error}") from None
    except RecursionError:
        raise VPPError(f"{name} is not valid JSON at line {line}, column 1: nested too deeply") from None


def _not_utf8(path: Path, where: str, error: UnicodeDecodeError) -> VPPError:
    return VPPError(f"'{path}' is not UTF-8 text ({where}: {error.reason}). Save it as UTF-8.")


@contextmanager
def progress_bar(
    title: str, *, shown: bool, total: int | None = None, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many samples went by, and of how many where that is known beforehand."""
    if shown:
        with named_extras():
            from rich import console, progress
        terminal = console.Console()  # not rich's shared one, which may be older than what it writes to
    if not shown or not terminal.is_terminal:
        yield lambda count: None
        return

    counted = progress.MofNCompleteColumn()
    kinds: list[Any] = [progress.SpinnerColumn(), counted, progress.TimeElapsedColumn()]
    if total is not None:
        kinds = [progress.BarColumn(), counted, progress.TimeRemainingColumn()]
    with progress.Progress(progress.TextColumn("{task.description}"), *kinds, transient=True, console=terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
