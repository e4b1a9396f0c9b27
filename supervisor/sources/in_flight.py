"""The record of the tasks in flight, so that a power cut leaves no task hanging. It holds ids, types, a count of lost
attempts and the address of a lease, nothing else.

A task is recorded as soon as its claim has been read and until its outcome is delivered. Mostly it is one task; for a moment
two: one that runs and one whose outcome is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from supervisor.sources.ids import is_id

NAME: Final = "task.json"
SET_ASIDE: Final = "task.json.unreadable"
VERSION: Final = 1
MAX_BYTES: Final = 2 << 20  # a bridge may have 2,301 tasks, each with a type and a name of the longest
WRITE_DEADLINE_S: Final = 10.0

UNKNOWN: Final = ""  # a re-post whose answer was not read: the server may have taken it


class InFlightTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task in flight. `node`: the server's id of this node. `repost`: None, UNKNOWN, or the id of the task posted again.
    `posts`: how often it was posted again without an answer that was read. `lost`: attempts at it that ended with their node.
    `over`: this attempt is over, or is counted in `lost`. `lease`: where a fleet takes word of it."""

    id: str
    type: str
    node: str = ""
    repost: str | None = None
    posts: int = 0
    lost: int = 0
    over: bool = False
    lease: str = ""


class _Document(msgspec.Struct):
    version: int
    tasks: tuple[InFlightTask, ...]


class InFlightRecord:
    """The record on disk and its copy in memory. Writing is atomic and synced, file and folder.

    Each method that writes raises OSError when the disk does not have the change; memory has it all the same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._tasks: dict[str, InFlightTask] = {}
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._tasks

    async def load(self) -> tuple[tuple[InFlightTask, ...], str]:
        """The tasks that an earlier run left; and a reason if the record could not be read and was set aside. An attempt that
        was not over is lost from now on."""
        found, problem = await asyncio.to_thread(self._read)
        tasks = tuple(map(_counted, found))
        self._tasks = {task.id: task for task in tasks}
        return tasks, problem

    async def put(self, task: InFlightTask) -> None:
        """Record a task."""
        await self._change((*self._tasks.values(), task))

    async def repost(self, task_id: str, new_id: str, posts: int = 0) -> None:
        """Record that the task was posted again; UNKNOWN before the answer is read. `posts`: see InFlightTask."""
        replace = msgspec.structs.replace
        await self._change(replace(t, repost=new_id, posts=posts) if t.id == task_id else t for t in self._tasks.values())

    def node_of(self, task_id: str) -> str:
        """The server's id of this node when it claimed the task; empty where that is not known."""
        return task.node if (task := self._tasks.get(task_id)) is not None else ""

    async def close(self, *task_ids: str) -> None:
        """Record that the attempts at these tasks are over; without an id, all of them. A node that ends now loses none."""
        changed = {t.id: t for t in self._tasks.values() if not t.over and (not task_ids or t.id in task_ids)}
        if changed:
            await self._change(msgspec.structs.replace(t, over=True) if t.id in changed else t for t in self._tasks.values())

    async def remove(self, task_id: str) -> None:
        """Forget a task: its outcome is delivered."""
        await self._change(task for task in self._tasks.values() if task.id != task_id)

    async def check(self) -> None:
        """Find out whether the disk takes a record now."""
        await self._in_time(self._probe)

    async def _change(self, tasks: Iterable[InFlightTask]) -> None:
        self._tasks = {task.id: task for task in tasks}
        await self._in_time(self._write)

    async def _in_time(self, work: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await asyncio.to_thread(work)
        except TimeoutError:
            raise OSError(f"{self._path} could not be written within {WRITE_DEADLINE_S:g} s") from None

    def _write(self) -> None:
        """Write what is in memory now, not when the write was asked for: a late write never brings back an old record."""
        with self._writing:
            tasks = tuple(self._tasks.values())
            if tasks:
                self._replace(self._path, msgspec.json.encode(_Document(VERSION, tasks)))
            else:
                self._path.unlink(missing_ok=True)
            if self._folder.is_dir():
                self._sync_folder()

    def _probe(self) -> None:
        with self._writing:
            probe = self._folder / f".{NAME}.probe"
            self._replace(probe, b"{}")
            probe.unlink()

    def _replace(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._folder / f".{NAME}.new"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> tuple[tuple[InFlightTask, ...], str]:
        with self._writing:
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(descriptor, "rb") as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        raise ValueError("it is not a regular file")
                    return _parsed(file.read(MAX_BYTES + 1)), ""
            except FileNotFoundError:
                return (), ""
            except OSError as error:
                problem = f"{self._path} cannot be read: {error.strerror}"
            except (ValueError, RecursionError):  # msgspec's errors too
                problem = f"{self._path} is damaged"
            with contextlib.suppress(OSError):
                self._path.replace(self._folder / SET_ASIDE)
                return (), f"{problem}; set aside as {SET_ASIDE}; a task may hang at the control node"
            return (), f"{problem} and cannot be set aside; a task may hang at the control node"


def _counted(task: InFlightTask) -> InFlightTask:
    """What is posted again was over before."""
    lost = task.lost + (not task.over and task.repost is None)
    return msgspec.structs.replace(task, lost=lost, over=True)


def _parsed(content: bytes) -> tuple[InFlightTask, ...]:
    """The recorded tasks.

    Raises:
        ValueError: this is not such a record.
    """
    if len(content) > MAX_BYTES:
        raise ValueError
    document = msgspec.json.decode(content, type=_Document)
    sound = all(is_id(t.id) and (t.repost in (None, UNKNOWN) or is_id(t.repost)) and t.lost >= 0 for t in document.tasks)
    if document.version != VERSION or not sound:
        raise ValueError
    return document.tasks
