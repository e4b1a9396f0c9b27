"""What a node answers the operator, read strictly: a node is not trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from supervisor.linux.text import one_line
from supervisor.sources.desired import MAX_LINES
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin.order import must_be_there
from supervisor.sources.nats.connection import ANSWER_S, Connection
from supervisor.sources.nats.errors import read_answer

MAX_CHARS: Final = 300
MAX_GUARDS: Final = 32
WAIT_S: Final = ANSWER_S + 2.0  # the gate itself waits for the node so long


async def why(connection: Connection, node: str) -> dict[str, Any]:
    """`state`, `since`, `guards` (`name`, `ok`, `text`, `wait_s`), `blocked_by`, `paused_by`, `paused_until`, `link`,
    `trouble`, `version`.

    Raises:
        NotSaid: the node is not there.
        RequestError: no answer comes, or none that can be read.
    """
    answer = await _ask(connection, node, "why", {})
    texts = ("state", "since", "paused_by", "paused_until", "link", "trouble", "version")
    guards = [_guard(one) for one in _list(answer.get("guards"), MAX_GUARDS) if isinstance(one, Mapping)]
    blocking = [_text(name) for name in _list(answer.get("blocked_by"), MAX_GUARDS)]
    return {**{name: _text(answer.get(name)) for name in texts}, "guards": guards, "blocked_by": blocking}


async def log(connection: Connection, node: str, lines: int) -> list[dict[str, str]]:
    """The last lines of its log, oldest first: `time` (ISO 8601), `text`. Raises as `why`."""
    answer = await _ask(connection, node, "log", {"lines": lines})
    found = [one for one in _list(answer.get("lines"), MAX_LINES) if isinstance(one, Mapping)]
    return [{"time": _text(one.get("time")), "text": _text(one.get("text"))} for one in found]


async def _ask(connection: Connection, node: str, question: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    await must_be_there(connection, node)
    answer = await connection.ask(subjects.ask_subject(node, question), json.dumps(wanted).encode(), WAIT_S)
    return read_answer(answer, f"{node}: {question}")


def _guard(one: Mapping[str, Any]) -> dict[str, Any]:
    ok, wait_s = one.get("ok"), one.get("wait_s")
    numeric = isinstance(wait_s, int | float) and not isinstance(wait_s, bool)
    return {
        "name": _text(one.get("name")),
        "ok": ok if isinstance(ok, bool) else None,
        "text": _text(one.get("text")),
        "wait_s": wait_s if numeric else None,
    }


def _list(value: Any, most: int) -> list[Any]:
    return value[:most] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return one_line(value, MAX_CHARS) if isinstance(value, str) else ""
