"""Standard output as every command has it: whatever locale, reader or disk is behind it, the exit code stays the answer's.

A locale that lacks a character gets the nearest that it has, a file's name its very bytes; a reader who has seen enough
misses the rest; a stream that was closed before we began takes nothing. Only what cannot be written at all, as on a full
disk, is a failure.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any, Final

# What our own words and drawings hold beyond ASCII. States keep signs of their own.
PLAIN: Final = {
    "→": "->", "–": "-", "…": "...", "≥": ">=", "≤": "<=", "°": "deg", "×": "x", "•": "*", "·": ".", "µ": "u", "²": "2",
    "█": "#", "▓": "%", "▄": "_", "─": "-", "━": "=", "▀": "^", "▼": "v", "◀": "<", "▶": ">", "╸": "-", "╺": "-",
}  # fmt: skip
ERRORS: Final = "rae-node-plain"


class Unwritable(OSError):
    """Standard output takes nothing more; the text says why."""


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # a byte that was none of the locale's when it came, in a path mostly
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return PLAIN.get(sign, "?"), error.start + 1


class _Outlet(io.FileIO):
    """Descriptor 1. `patient`: who writes goes on when the reader has gone. `left`: the reader has gone."""

    patient = True
    left = False

    def write(self, data: Any) -> int:
        """See FileIO."""
        try:
            return super().write(data)
        except BrokenPipeError:
            if not self.patient:
                raise
            self.left = True
            drop()
            return memoryview(data).nbytes
        except BlockingIOError:
            raise
        except OSError as error:
            raise Unwritable(error.errno, f"stdout cannot be written: {error.strerror}") from error


def prepare(*, patient: bool = True) -> None:
    """Make stdout and stderr so. Not `patient`: a command without an end, which ends with its reader (BrokenPipeError)."""
    codecs.register_error(ERRORS, _plain)
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: it takes the place of the one that is missing
    kept = sys.stdout
    outlet = _Outlet(1, "wb", closefd=False)
    outlet.patient = patient
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=getattr(kept, "encoding", None) or "utf-8",
        errors=ERRORS,
        line_buffering=getattr(kept, "line_buffering", False),
        write_through=getattr(kept, "write_through", False),
    )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=ERRORS)


def drop() -> None:
    """Throw away what is written from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def left() -> bool:
    """Its reader has gone before the end."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Outlet) and raw.left


def document(value: Any) -> str:
    """One JSON document, which every locale takes as it is."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, allow_nan=False)
    return text
