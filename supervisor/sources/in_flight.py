"""The note of the tasks in flight: ids and types, nothing else (R6), so that a power cut leaves no task hanging (R2).

A task is noted as soon as its claim has been read and until its outcome is delivered; mostly there is one, for a moment
two: one that runs and one whose outcome is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from supervisor.sources.ids import is_id

NAME: Final = "task.json"
SET_ASIDE: Final = "task.json.unreadable"
VERSION: Final = 1
MAX_BYTES: Final = 2 << 20  # a bridge may have 301 tasks on the way, each with a type and a name of the longest
WRITE_DEADLINE_S: Final = 10.0

UNKNOWN: Final = ""  # a re-post whose answer was not read: the server may have taken it


@dataclass(frozen=True, slots=True)
class InFlightTask:
    """A task in flight. `node`: what the server calls us. `repost`: None, UNKNOWN, or the id of the task posted anew."""

    id: str
    type: str
    node: str = ""
    repost: str | None = None


class InFlightRecord:
    """The note on disk and its copy in memory. Writing is atomic and synced, file and folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, InFlightTask] = {}
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._entries

    async def load(self) -> tuple[tuple[InFlightTask, ...], str]:
        """What a life before this one left, and a reason if the note could not be read and was set aside."""
        entries, trouble = await asyncio.to_thread(self._read)
        self._entries = {entry.id: entry for entry in entries}
        return entries, trouble

    async def put(self, entry: InFlightTask) -> None:
        """Note a task.

        Raises:
            OSError: it is not on disk. In memory it is noted all the same.
        """
        await self._change((*self._entries.values(), entry))

    async def repost(self, task_id: str, new_id: str) -> None:
        """Note that the task was posted anew; UNKNOWN before the answer is read.

        Raises:
            OSError: it is not on disk.
        """
        await self._change(replace(e, repost=new_id) if e.id == task_id else e for e in self._entries.values())

    async def remove(self, task_id: str) -> None:
        """Forget a task: its outcome is delivered.

        Raises:
            OSError: it is still on disk.
        """
        await self._change(entry for entry in self._entries.values() if entry.id != task_id)

    async def check(self) -> None:
        """Find out whether a note could be written now.

        Raises:
            OSError: no.
        """
        await self._in_time(self._probe)

    async def _change(self, entries: Iterable[InFlightTask]) -> None:
        self._entries = {entry.id: entry for entry in entries}
        await self._in_time(self._write)

    async def _in_time(self, work: Any) -> None:
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await asyncio.to_thread(work)
        except TimeoutError:
            raise OSError(f"{self._folder / NAME} could not be written within {WRITE_DEADLINE_S:g} s") from None

    def _write(self) -> None:
        """Write what is noted now, not what was when the write was asked for: so a late one never brings back old news."""
        with self._writing:
            entries = self._entries
            path = self._folder / NAME
            if entries:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                document = {"version": VERSION, "tasks": [asdict(entry) for entry in entries.values()]}
                self._replace(path, json.dumps(document).encode())
            else:
                path.unlink(missing_ok=True)
            self._sync_folder()

    def _probe(self) -> None:
        with self._writing:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self._folder / f".{NAME}.probe"
            self._replace(probe, b"{}")
            probe.unlink()

    def _replace(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{NAME}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _sync_folder(self) -> None:
        if not self._folder.is_dir():
            return
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> tuple[tuple[InFlightTask, ...], str]:
        path = self._folder / NAME
        with self._writing:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(descriptor, "rb") as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        raise ValueError("it is not a regular file")
                    return _parsed(file.read(MAX_BYTES + 1)), ""
            except FileNotFoundError:
                return (), ""
            except OSError as error:
                trouble = f"{path} cannot be read: {error.strerror}"
            except (ValueError, TypeError, KeyError, RecursionError):
                trouble = f"{path} is damaged"
            with contextlib.suppress(OSError):
                path.replace(self._folder / SET_ASIDE)
                return (), f"{trouble}; set aside as {SET_ASIDE}; a task may hang at the control node"
            return (), f"{trouble} and cannot be set aside; a task may hang at the control node"


def _parsed(content: bytes) -> tuple[InFlightTask, ...]:
    """The entries.

    Raises:
        ValueError, TypeError, KeyError: these are none.
    """
    if len(content) > MAX_BYTES:
        raise ValueError
    document = json.loads(content.decode())
    if document["version"] != VERSION:
        raise ValueError
    entries = tuple(InFlightTask(**task) for task in document["tasks"])
    for entry in entries:
        if not is_id(entry.id) or not isinstance(entry.type, str) or not isinstance(entry.node, str):
            raise ValueError
        if not is_id(entry.repost) and entry.repost not in (None, UNKNOWN):
            raise ValueError
    return entries
