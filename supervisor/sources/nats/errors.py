"""What a NATS server with JetStream answers, read strictly: answers, deliveries, and its texts for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from supervisor.linux.text import one_line
from supervisor.sources.errors import RequestError
from supervisor.sources.sanitize import decode

LIMIT_OF_STREAM: Final = 10077  # JetStream's error code where a limit of the stream keeps a message out
PER_SUBJECT: Final = "per subject"
NOTHING: Final = "404"
NO_RESPONDERS: Final = "503"
TIME_OVER: Final = "408"
TOO_LARGE: Final = 413
MAX_TEXT: Final = 200


class Refused(RequestError):
    """The server refuses, and would refuse again: a limit, a right, a name that is not there."""


class Exists(Refused):
    """Another message lies at that subject already, and it stands."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it travels. `reply`: where an answer is expected; empty: nowhere."""

    subject: str
    reply: str
    data: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that is ours for as long as its lease. `reply`: where it is acknowledged; `count`: deliveries so far."""

    data: bytes = field(repr=False)
    reply: str
    count: int
    sequence: int


def read_answer(data: bytes, what: str) -> dict[str, Any]:
    """JetStream's answer to a call; `what` names the call for people.

    Raises:
        Exists, Refused: the server refuses, and would refuse again.
        RequestError: it is not an answer, or the server may soon answer otherwise.
    """
    try:
        value = decode(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"the server answered {what} with something that is no answer of JetStream")
    error = value.get("error")
    if error is None:
        return value
    if not isinstance(error, dict):
        raise RequestError(f"the server answered {what} with an error of an unknown form")
    text, code = one_line(str(error.get("description", "")), MAX_TEXT), error.get("code")
    if error.get("err_code") == LIMIT_OF_STREAM and PER_SUBJECT in text:
        raise Exists(f"{what}: there is one already")
    if code == 503:
        raise RequestError(f"{what}: {text}")  # a full stream, no leader yet: this may soon change
    raise Refused(f"{what}: {text}", status=code if type(code) is int else 0)


def read_delivery(data: bytes, reply: str, headers: Mapping[str, str]) -> Delivery | None:
    """A message as a delivery; None for a status of the server's (nothing there, time over).

    Raises:
        RequestError: the server will hand out nothing: the consumer is gone, or has another leader.
    """
    if not reply:
        if (status := headers.get("Status", NOTHING)) in (NOTHING, TIME_OVER):
            return None
        status = one_line(f"{status} {headers.get('Description', '')}", MAX_TEXT)
        raise RequestError(f"the fleet hands out no work now: its server says {status}")
    # $JS.ACK.<stream>.<consumer>.<count>.<sequence>..., or with domain and account before the stream; or a lease of the gate:
    # rae.gate.<user>.lease.<count>.<sequence>...
    tokens = reply.split(".")
    at = 4 if len(tokens) == 9 or tokens[0] == "rae" else 6
    try:
        return Delivery(data, reply, int(tokens[at]), int(tokens[at + 1]))
    except (IndexError, ValueError):
        return None


def family(subject: str) -> str:
    """The subject without what belongs to one task."""
    if subject.startswith("$JS.ACK") or ".lease." in subject:
        return "an acknowledgement"
    return ".".join(subject.split(".")[: 5 if subject.startswith("$JS") else 2])
