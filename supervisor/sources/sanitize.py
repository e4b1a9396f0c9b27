"""JSON for the other side, and from it.

The control node's database refuses NUL, lone surrogates, NaN and infinities with a 500 that leaves the task hanging.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

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


def reason(value: str | None) -> str:
    """One line of bounded length, never empty: the server takes an empty error for success."""
    return one_line(text(value or ""), MAX_REASON_CHARS) or "failed, no reason given"


def sanitize(value: Any) -> Any:
    """The value as plain JSON types that always encode.

    NaN and infinities become null, bytes become text; what JSON cannot hold becomes a string that names its type.
    """
    return _sanitize(value, ())


def encode(value: Any) -> bytes:
    """The sanitized value as JSON."""
    return json.dumps(sanitize(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def decode(data: bytes | bytearray) -> Any:
    """The value of JSON from outside.

    Raises:
        ValueError: it is not JSON; NaN, infinities and endless nesting are not.
    """
    try:
        return json.loads(data.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _sanitize(value: Any, above: tuple[int, ...]) -> Any:
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
                return {_key(key): _sanitize(item, inner) for key, item in value.items()}
            return [_sanitize(item, inner) for item in value]
        case _:
            return f"<{text(type(value).__name__)}>"


def _key(key: Any) -> str:
    return f"<{type(key).__name__}>" if isinstance(key, tuple | frozenset) else str(_sanitize(key, ()))
