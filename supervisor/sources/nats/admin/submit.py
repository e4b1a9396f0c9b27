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
from supervisor.sources.nats import subjects
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import TOO_LARGE, Exists, Message, Refused
from supervisor.sources.nats.messages import MAX_TYPE_CHARS, Poison, Result, decode_result, encode_task, is_type, stored_result

FIELDS: Final = frozenset({"id", "type", "payload", "priority"})
AT_ONCE: Final = 64  # requests on their way
LOOK_AGAIN_S: Final = 2.0  # between looks for results that were not heard
EXAMPLE: Final = 'a task is {"type": "echo", "payload": {}}'


class BadTasks(Exception):
    """The text is not tasks; the message says where and why."""


def read_tasks(text: str) -> list[Claim]:
    """Tasks from JSON: one object, a list, or one a line; with `type`, and optionally `payload`, `priority`, `id` (a UUID).

    Raises:
        BadTasks: the text is not tasks.
    """
    try:
        value = json.loads(text)
        values = value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        values = [_line(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not values:
        raise BadTasks(f"there is no task; {EXAMPLE}")
    return [_task(value, number) for number, value in enumerate(values, 1)]


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise BadTasks(f"line {number} is not JSON; {EXAMPLE}") from None


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
    connection: Connection, tasks: Iterable[Claim], *, on_queued: Callable[[str], None] = lambda task_id: None
) -> list[str]:
    """Queue the tasks; the ids of those that were queued before. `on_queued` is called with the id of each queued task.

    Raises:
        Refused: a task is too large, and none is queued.
        RequestError: a task could not be queued, and perhaps those after it; the same call again queues what is missing.
    """
    tasks, gate = list(tasks), asyncio.Semaphore(AT_ONCE)
    for number, task in enumerate(tasks, 1):
        if why := connection.too_large(encode_task(task), connection.msg_id(task.id)):
            raise Refused(f"task {number}: {why}; nothing is queued", status=TOO_LARGE)

    async def one(task: Claim) -> str | None:
        async with gate:
            try:
                new = await connection.store(subjects.task_subject(task.type, task.id), encode_task(task), task.id)
            except Exists:
                new = False
            on_queued(task.id)
            return None if new else task.id

    return [task_id for task_id in await asyncio.gather(*map(one, tasks)) if task_id is not None]


async def wait(
    connection: Connection, ids: Iterable[str], *, timeout_s: float | None, on_result: Callable[[Result], None]
) -> set[str]:
    """Wait for results; `on_result` gets each once. Returns the ids without a result after `timeout_s` (None: no limit)."""
    missing = set(ids)
    turns = deque(missing)
    complete = asyncio.Event()

    def take(result: Result) -> None:
        if result.id in missing:
            missing.discard(result.id)
            on_result(result)
            if not missing:
                complete.set()

    def heard(message: Message) -> None:
        with contextlib.suppress(Poison):  # what lies there is looked up, too
            take(decode_result(message.data))

    await connection.listen(subjects.ANY_RESULT, heard)
    end_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    while missing and time.monotonic() < end_s:
        # Look up results that came before we listened, or that were dropped on the way: some in each turn, all in the end.
        found = False
        turns = deque(task_id for task_id in turns if task_id in missing)
        for task_id in list(turns)[:AT_ONCE]:
            turns.rotate(-1)
            if task_id not in missing:
                continue
            data = await connection.last(subjects.RESULTS, subjects.result_subject(task_id))
            if data is not None:
                take(stored_result(data, task_id))
                found = True
        if missing and not found:
            await wait_for_event(complete, max(0.0, min(LOOK_AGAIN_S, end_s - time.monotonic())))
    return missing
