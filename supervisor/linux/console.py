"""Standard output for every command: locale, reader and disk do not change the exit code.

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
from typing import Any, Final

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


def prepare(*, patient: bool = True) -> None:
    """Set up stdout and stderr. `patient=False` is for a command without an end: BrokenPipeError ends it with its reader."""
    codecs.register_error(ERRORS, _plain)
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is the missing one
    before = sys.stdout
    outlet = _Outlet(1, "wb", closefd=False)
    outlet.patient = patient
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors=ERRORS,
        line_buffering=getattr(before, "line_buffering", False),
        write_through=getattr(before, "write_through", False),
    )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=ERRORS)


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
    """One JSON document that the locale can encode."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, allow_nan=False)
    return text
