"""Tasks into a fleet, and their results out of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import uuid4

from supervisor.linux.bounded import wait_for_event
from supervisor.sources.base import Claim
from supervisor.sources.ids import is_id
from supervisor.sources.nats import subjects as layout
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import TOO_LARGE, Exists, Refused
from supervisor.sources.nats.messages import MAX_TYPE_CHARS, Poison, Result, decode_result, encode_task, is_type, stored_result

FIELDS: Final = frozenset({"id", "type", "payload", "priority"})
AT_ONCE: Final = 64  # requests on their way
LOOK_AGAIN_S: Final = 2.0  # what was not heard of is looked up


class BadTasks(Exception):
    """The text is not tasks; the message says where and why."""


def read_tasks(text: str) -> list[Claim]:
    """Tasks from JSON: one object, a list of them, or one a line; `type`, and if wanted `payload`, `priority`, `id` (a UUID).

    Raises:
        BadTasks: these are none.
    """
    try:
        value = json.loads(text)
        values = value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        values = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    values.append(json.loads(line))
                except (ValueError, RecursionError):
                    raise BadTasks(f"line {number} is not JSON; a task is {{\"type\": \"echo\", \"payload\": {{}}}}") from None
    if not values:
        raise BadTasks('there is no task; one is {"type": "echo", "payload": {}}')
    return [_task(value, number) for number, value in enumerate(values, 1)]


def _task(value: Any, number: int) -> Claim:
    def bad(what: str) -> BadTasks:
        return BadTasks(f"task {number}: {what}")

    if not isinstance(value, dict):
        raise bad("found no object")
    if unknown := sorted(set(value) - FIELDS):
        raise bad(f"found {unknown[0]}, allowed: {', '.join(sorted(FIELDS))}")
    kind, payload = value.get("type"), value.get("payload", {})
    if not is_type(kind):
        raise bad(f"type: allowed: a text of 1 to {MAX_TYPE_CHARS} characters")
    if not isinstance(payload, dict):
        raise bad("payload: allowed: an object")
    priority, task_id = value.get("priority", 0), value.get("id", str(uuid4()))
    if type(priority) is not int:
        raise bad("priority: allowed: a whole number")
    if not is_id(task_id):
        raise bad("id: allowed: a UUID")
    return Claim(task_id.lower(), kind, payload, priority)


async def submit(
    wire: Connection, tasks: Iterable[Claim], *, queued: Callable[[str], None] = lambda task_id: None
) -> list[str]:
    """Queue them; the ids of those that were queued already, which is no fault. `queued` is told of each that is.

    Raises:
        Refused: one is too large, and none is queued.
        RequestError: one could not be queued, and with it maybe those after it; the same call again queues what is missing.
    """
    tasks, gate = list(tasks), asyncio.Semaphore(AT_ONCE)
    for number, task in enumerate(tasks, 1):
        if why := wire.too_large(encode_task(task), wire.msg_id(task.id)):
            raise Refused(f"task {number}: {why}; nothing is queued", status=TOO_LARGE)

    async def one(task: Claim) -> str | None:
        async with gate:
            try:
                new = await wire.store(layout.task_subject(task.type, task.id), encode_task(task), task.id)
            except Exists:
                new = False
            queued(task.id)
            return None if new else task.id

    return [task_id for task_id in await asyncio.gather(*map(one, tasks)) if task_id is not None]


async def wait(
    wire: Connection, ids: Iterable[str], *, timeout_s: float | None, came: Callable[[Result], None]
) -> set[str]:
    """Wait for results; `came` is told each once. Returns the ids without one after `timeout_s` seconds (None: for ever).

    Raises:
        RequestError: the servers are gone.
    """
    missing = set(ids)
    turns = deque(missing)
    all_here = asyncio.Event()

    def tell(result: Result) -> None:
        if result.id in missing:
            missing.discard(result.id)
            came(result)
            if not missing:
                all_here.set()

    def heard(data: bytes) -> None:
        with contextlib.suppress(Poison):  # what lies there is looked up, too
            tell(decode_result(data))

    await wire.listen(layout.ANY_RESULT, heard)
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    while missing and (end_s is None or time.monotonic() < end_s):
        # a result that came before we listened, or that was dropped on the way to us: so many a turn, each in its turn
        found = False
        turns = deque(task_id for task_id in turns if task_id in missing)
        for task_id in list(turns)[:AT_ONCE]:
            turns.rotate(-1)
            if task_id in missing and (data := await wire.last(layout.RESULTS, layout.result_subject(task_id))) is not None:
                tell(stored_result(data, task_id))
                found = True
        pause_s = LOOK_AGAIN_S if end_s is None else max(0.0, min(LOOK_AGAIN_S, end_s - time.monotonic()))
        if missing and not found:
            await wait_for_event(all_here, pause_s)
    return missing
