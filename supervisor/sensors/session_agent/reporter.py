"""One lasting connection from a session agent to the daemon, and what is told over it.

A report goes out at once when something has changed, and else often enough to stay young (`every_s`, which the daemon
says). While no daemon listens nothing is tried: the folder of its socket is watched, by inotify.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from supervisor.linux.bounded import wait_for_event
from supervisor.linux.control_socket import MAX_REQUEST, PROTOCOL, short_name
from supervisor.linux.inotify import Event, Watcher, flags

GAP_S: Final = 0.02  # between two reports: what changes meanwhile goes into one
DEADLINE_S: Final = 5.0
FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 60.0


class Reporter:
    """Tells `report()` (awaited: it may look first; `again` says that nothing has changed) to the daemon at `path`."""

    def __init__(self, path: Path, report: Callable[[bool], Awaitable[dict[str, Any]]], say: Callable[[str], None]) -> None:
        self._path, self._report, self._say = path, report, say
        self._dirty = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._dirty.set()

    async def run(self) -> None:
        """Tell, for as long as nobody cancels it."""
        wait_s, said = FIRST_RETRY_S, ""

        def taken() -> None:  # what follows is another trouble, and waited for and told as such
            nonlocal wait_s, said
            wait_s, said = FIRST_RETRY_S, ""

        while True:
            with _Watch(self._path) as socket_comes:
                try:
                    await self._connected(taken)
                except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                    reason = f"no daemon listens at {self._path}"
                    patience_s = None if socket_comes.seen else wait_s
                except EOFError:
                    reason, patience_s = "the daemon closed the connection", wait_s
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and tried again: silence is for good
                    reason, patience_s = f"the daemon at {self._path} takes no report: {error or 'no answer'}", wait_s
                if reason != said:
                    self._say(reason)
                    said = reason
                wait_s = min(2 * wait_s, LAST_RETRY_S)
                await wait_for_event(socket_comes.event, patience_s)

    async def _connected(self, taken: Callable[[], None]) -> NoReturn:
        """Tell, until something ends that; `taken` is called once a report was."""
        with short_name(self._path) as name:
            reader, writer = await asyncio.open_unix_connection(name)
        try:
            self._dirty.clear()
            async with asyncio.timeout(DEADLINE_S):
                await self._send(writer, again=False)
                answer = json.loads(await reader.readline() or b"null")
            if not isinstance(answer, dict):
                raise EOFError
            if not answer.get("ok"):
                raise ValueError(str(answer.get("error")))
            if not isinstance(every_s := answer.get("every_s"), int | float):
                raise ValueError("it does not say how often it wants one; are agent and node of the same version?")
            taken()
            over = asyncio.ensure_future(reader.readline())
            try:
                await self._go_on(writer, over, float(every_s))
            finally:
                over.cancel()
        finally:
            writer.transport.abort()

    async def _go_on(self, writer: asyncio.StreamWriter, over: asyncio.Future[bytes], every_s: float) -> NoReturn:
        while True:
            await asyncio.sleep(GAP_S)
            dirty = asyncio.ensure_future(self._dirty.wait())
            events: list[asyncio.Future[Any]] = [dirty, over]
            try:
                await asyncio.wait(events, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                dirty.cancel()
            if over.done():
                line = over.result()
                if not line:
                    raise EOFError
                raise ValueError(str(json.loads(line).get("error")))
            again = not self._dirty.is_set()
            self._dirty.clear()
            async with asyncio.timeout(2 * DEADLINE_S):
                await self._send(writer, again)

    async def _send(self, writer: asyncio.StreamWriter, again: bool) -> None:
        message = {"v": PROTOCOL, "tell": "presence", **await self._report(again)}
        line = json.dumps(message).encode() + b"\n"
        while len(line) > MAX_REQUEST and message["sessions"]:
            for session in message["sessions"]:  # names are told only as far as there is room
                session["inhibitors"] = [holder[:20] for holder in session["inhibitors"][:2]]
                session["why"] = session["why"][:40]
            if line == (line := json.dumps(message).encode() + b"\n"):
                message["sessions"].pop()
        writer.write(line)
        await writer.drain()


class _Watch:
    """Waits until the socket, or the next folder on the way to it, comes; `seen`: that can be seen (a user has few
    inotify instances, and so many watches)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.event = asyncio.Event()
        self._watcher = Watcher(self._read)
        self.seen = False

    def __enter__(self) -> _Watch:
        self._watcher.open()
        mask = flags.CREATE | flags.MOVED_TO | flags.DELETE_SELF | flags.ATTRIB
        self.seen = any(self._watcher.add(folder, mask) for folder in self._path.parents)
        return self

    def _read(self, events: list[Event]) -> None:
        if any(event.overflow or os.path.basename(event.path) in self._path.parts for event in events):
            self.event.set()

    def __exit__(self, *_: object) -> None:
        self._watcher.close()
