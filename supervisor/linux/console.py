"""Standard output and errors for every command: locale, reader and disk do not change the exit code.

No text that a command prints can command the terminal: what a terminal would obey is written out (`text.visible`), wherever
it comes from. Only a library that draws gets past this, by `drawing`.

A character that the locale lacks is replaced by the nearest one; the bytes of a file name stay as they are. If the reader has
gone, the rest is dropped; if a stream was closed before the start, everything is. Only a write error, such as a full disk, is
a failure.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import IO, Any, Final, cast

from supervisor.linux.text import OBEYED, visible

# The characters beyond ASCII of our own texts and drawings.
PLAIN: Final = {
    "→": "->", "–": "-", "…": "...", "≥": ">=", "≤": "<=", "°": "deg", "×": "x", "•": "*", "·": ".", "µ": "u", "²": "2",
    "█": "#", "▓": "%", "▄": "_", "─": "-", "━": "=", "▀": "^", "▼": "v", "◀": "<", "▶": ">", "╸": "-", "╺": "-",
}  # fmt: skip
ERRORS: Final = "rae-node-plain"


class Unwritable(OSError):
    """Standard output cannot be written; the text says why."""


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # a byte that the locale could not decode, mostly in a path
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return PLAIN.get(sign, "?"), error.start + 1


class _Outlet(io.FileIO):
    """Descriptor 1. `patient`: when the reader goes, drop the rest instead of raising. `reader_left`: it has gone."""

    patient = True
    reader_left = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            if not self.patient:
                raise
            self.reader_left = True
            drop()
            return memoryview(data).nbytes
        except BlockingIOError:
            raise
        except OSError as error:
            raise Unwritable(error.errno, f"stdout cannot be written: {error.strerror}") from error


class _Clean(io.TextIOWrapper):
    """A text stream to people."""

    def write(self, text: str) -> int:
        super().write(visible(text))
        return len(text)


class _Drawing:
    """The same stream for a library that draws with escape sequences; it must clean the texts itself."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def drawing() -> IO[str]:
    """Standard output for a library that draws."""
    return cast(IO[str], _Drawing(sys.stdout)) if isinstance(sys.stdout, _Clean) else sys.stdout


def prepare_errors() -> None:
    """Set up stderr, for a program that prints nothing else."""
    codecs.register_error(ERRORS, _plain)
    sys.stderr = _Clean(
        io.BufferedWriter(io.FileIO(2, "wb", closefd=False)),
        encoding=getattr(sys.stderr, "encoding", None) or "utf-8",
        errors=ERRORS,
        line_buffering=True,
        write_through=True,
    )


def prepare(*, patient: bool = True) -> None:
    """Set up stdout and stderr. `patient=False` is for a command without an end: BrokenPipeError ends it with its reader."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is the missing one
    prepare_errors()
    before = sys.stdout
    outlet = _Outlet(1, "wb", closefd=False)
    outlet.patient = patient
    sys.stdout = _Clean(
        io.BufferedWriter(outlet),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors=ERRORS,
        line_buffering=getattr(before, "line_buffering", False),
        write_through=getattr(before, "write_through", False),
    )


def drop() -> None:
    """Drop everything that is written from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def reader_left() -> bool:
    """Whether the reader of stdout has gone before the end."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Outlet) and raw.reader_left


def document(value: Any) -> str:
    """One JSON document that the locale can encode, and that a terminal only shows."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    text = text if not OBEYED.search(text) else OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, allow_nan=False)
    return text
