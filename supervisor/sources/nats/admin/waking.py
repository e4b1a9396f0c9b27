"""Waking the nodes of a fleet that sleep: by the operator, or by the gate for tasks that only they can run.

A node with `work.wake` writes how it can be woken where that stays while it sleeps. Another such node in its network sends the
packet.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from supervisor.linux.text import one_line
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import registry, subjects
from supervisor.sources.nats.admin.ask import WAIT_S
from supervisor.sources.nats.admin.order import NotSaid, nodes_there
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import read_answer
from supervisor.sources.sanitize import decode

MAX_CHARS: Final = 200
MAX_CARDS: Final = 16
MAX_TYPES: Final = 256
LOOK_S: Final = 60.0
AGAIN_S: Final = 900.0  # a machine that did not come is not woken again sooner


async def wake(connection: Connection, node: str) -> str:
    """Have a node wake another one in its network; the name of the one that has sent the packet.

    Raises:
        NotSaid: nobody knows how to wake it, or nobody is there who could.
        RequestError: no answer comes.
    """
    known = await _known(connection)
    there = await nodes_there(connection)
    if node in there:
        raise NotSaid(f"{node} is there, so it does not sleep")
    if node not in known:
        names = f"; known: {', '.join(sorted(known))}" if known else ""
        raise NotSaid(f"nobody knows how to wake {node}: it needs work.wake: true in its node.yaml{names}")
    cards = known.pop(node)["cards"]
    for mac, network in cards:
        for name in sorted(there):
            if name in known and network in {near for _, near in known[name]["cards"]}:
                asked = json.dumps({"mac": mac, "network": network}).encode()
                with contextlib.suppress(RequestError):  # the next one may be able to
                    answer = await connection.ask(subjects.ask_subject(name, "wake"), asked, WAIT_S)
                    if read_answer(answer, "wake").get("sent"):
                        return name
    networks = ", ".join(sorted({network for _, network in cards}))
    raise NotSaid(f"no node that is there, with work.wake: true, has sent the packet into {networks}, where {node} is")


async def _known(connection: Connection) -> dict[str, dict[str, Any]]:
    """Nodes that can be woken: `types`, `cards` (mac, network). A node is not trusted: what is no such entry is left out."""
    found = {}
    for data in await connection.last_of_each(subjects.WAKE_STREAM):
        with contextlib.suppress(ValueError):
            value = decode(data)
            if isinstance(value, dict) and (name := _text(value.get("node"))):
                cards = [one for one in _list(value.get("cards"), MAX_CARDS) if isinstance(one, Mapping)]
                types = {_text(one) for one in _list(value.get("types"), MAX_TYPES)}
                found[name] = {"types": types, "cards": [(_text(one.get("mac")), _text(one.get("network"))) for one in cards]}
    return {name: one for name, one in found.items() if one["cards"]}


def _list(value: Any, most: int) -> list[Any]:
    return value[:most] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return one_line(value, MAX_CHARS) if isinstance(value, str) else ""


class Waker:
    """Wakes nodes for the types of waiting tasks that no node runs which is there. For the gate, once a minute."""

    def __init__(self, connection: Connection, say: Callable[[str], None]) -> None:
        self._connection = connection
        self._say = say
        self._woken_s: dict[str, float] = {}

    async def look(self, now_s: float) -> None:
        """One look, at this time in seconds of any clock. Raises RequestError."""
        known = await _known(self._connection)
        if not known:
            return
        waiting = await self._waiting()
        entries = registry.read(await self._connection.last_of_each(subjects.NODES_STREAM))
        there = await nodes_there(self._connection)
        run = {subjects.token(kind) for entry in entries if entry["node"] in there for kind in entry["types"]}
        for kind in sorted(waiting - run):
            for name in sorted(known.keys() - set(there)):
                early = now_s - self._woken_s.get(name, -AGAIN_S) < AGAIN_S
                if early or kind not in {subjects.token(one) for one in known[name]["types"]}:
                    continue
                self._woken_s[name] = now_s
                try:
                    self._say(f"{await wake(self._connection, name)} wakes {name}: tasks of the type {kind} wait")
                except NotSaid as why:
                    self._say(f"{name} is not woken for tasks of the type {kind}: {why}")
                break

    async def _waiting(self) -> set[str]:
        """The types of the tasks in the queue, as tokens of a subject."""
        info = await self._connection.api(f"STREAM.INFO.{subjects.TASKS}", {"subjects_filter": "rae.tasks.>"})
        lie = info["state"].get("subjects") or {}
        return {subject.split(".")[2] for subject in lie if subject.count(".") == 3}
