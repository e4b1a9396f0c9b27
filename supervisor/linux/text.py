"""Text that came from outside, made fit to be shown: names, messages of servers, output of programs."""

from __future__ import annotations

import re
from typing import Final

# A terminal's escape sequences: CSI, OSC and other strings (ended by BEL or ST), and those of two characters.
ESCAPE: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b.?"
)
# What a terminal obeys, and what changes the order of characters or lines: controls, without line end and tab, and Unicode's
# line separators and marks of direction.
OBEYED: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text, in which what a terminal would obey is written out: `\\x1b`, `\\u202e`. Line ends and tabs stay."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str, max_chars: int) -> str:
    """The text on one line of at most `max_chars` characters; `…` ends what was cut.

    Escape sequences and everything else that is not printable become spaces, and white space collapses.
    """
    text = text[: 4 * max_chars]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in ESCAPE.sub(" ", text))
    line = " ".join(text.split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def escaped(text: str, max_chars: int) -> str:
    """The text on one line of at most `max_chars` characters, with unprintable characters written as `\\x1b`, `\\u202e`."""
    text = text[: max_chars + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def error_text(error: BaseException) -> str:
    """An error on one line: the system's text for it, its own text, or its type."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text, 200) or type(error).__name__
