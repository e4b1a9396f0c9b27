"""Make a result fit for the control node: its database refuses NUL, lone surrogates, NaN and infinities with a 500 that
leaves the task hanging, so they are replaced before posting."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from supervisor.linux.text import one_line

REPLACEMENT: Final = "\ufffd"
MAX_DEPTH: Final = 100  # containers within containers; the server's parser and database have limits of their own
MAX_INT_BITS: Final = 13_000  # Python refuses to write or read integers of more than 4,300 digits
MAX_REASON_CHARS: Final = 2_000


def text(value: str) -> str:
    """The string without NUL and lone surrogates; two halves of a pair become their character."""
    if not value.isascii():
        value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value.replace("\0", REPLACEMENT)


def reason(value: str) -> str:
    """One clean line of bounded length that is never empty: the server takes an empty error for success."""
    return one_line(text(value), MAX_REASON_CHARS) or "failed, no reason given"


def clean(value: Any) -> Any:
    """The value as plain JSON types that always encode: NaN and infinities become null, bytes text, what cannot be said
    a note of its type."""
    return _clean(value, ())


def mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object, cleaned."""
    cleaned: dict[str, Any] = clean(dict(value))
    return cleaned


def encode(value: Any) -> bytes:
    """A cleaned value as JSON."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _clean(value: Any, above: tuple[int, ...]) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return text(value)
        case int():
            return int(value) if value.bit_length() <= MAX_INT_BITS else f"<integer of {value.bit_length()} bits>"
        case float():
            return float(value) if math.isfinite(value) else None
        case bytes() | bytearray() | memoryview():
            return text(bytes(value).decode("utf-8", "replace"))
        case Mapping() | list() | tuple() | set() | frozenset():
            if len(above) >= MAX_DEPTH or id(value) in above:
                return "<nested too deep>"
            inner = (*above, id(value))
            if isinstance(value, Mapping):
                return {_key(key): _clean(item, inner) for key, item in value.items()}
            return [_clean(item, inner) for item in value]
        case _:
            return f"<{text(type(value).__name__)}>"


def _key(key: Any) -> str:
    cleaned = _clean(key, ()) if not isinstance(key, tuple | frozenset) else f"<{type(key).__name__}>"
    return cleaned if isinstance(cleaned, str) else str(cleaned)
