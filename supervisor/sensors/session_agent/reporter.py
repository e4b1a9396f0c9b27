"""The lasting connection from a session agent to the daemon, and the reports over it.

A report goes out at once when something has changed, and otherwise often enough to stay young (`every_s`, which the daemon
says). The daemon's news for the person come back over it. While no daemon listens, the agent does not try: inotify watches
the folder of the daemon's socket.
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

GAP_S: Final = 0.02  # between two reports; one report covers what changes in this time
DEADLINE_S: Final = 5.0
PROOF_S: Final = 10.0
MAX_UNREAD: Final = 1 << 16  # bytes that the daemon has not taken: it hangs
FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 60.0


class Reporter:
    """Sends `report()` to the daemon at `path`. `prove` asks every source again; called when nothing has changed for a while.
    `log` takes a line about the connection; `news` what the daemon says of itself, and None when the connection ends."""

    def __init__(
        self,
        path: Path,
        report: Callable[[], dict[str, Any]],
        prove: Callable[[], Awaitable[None]],
        log: Callable[[str], None],
        news: Callable[[dict[str, Any] | None], None] = lambda _: None,
    ) -> None:
        self._path, self._report, self._prove, self._log, self._news = path, report, prove, log, news
        self._writer: asyncio.StreamWriter | None = None
        self._sent_s = 0.0  # by the loop's time
        self._next: asyncio.TimerHandle | None = None
        self._socket_came = asyncio.Event()
        self._wait_s, self._logged = FIRST_RETRY_S, ""

    def changed(self, not_before_s: float = 0.0) -> None:
        """Something has changed: send a report, at once unless one was sent just now; `not_before_s`: by the loop's time."""
        due_s = max(self._sent_s + GAP_S, not_before_s)
        if self._writer is not None and (self._next is None or due_s < self._next.when()):
            self._cancel_next()
            self._next = asyncio.get_running_loop().call_at(due_s, self._send_change, self._writer)

    async def run(self) -> None:
        mask = flags.CREATE | flags.MOVED_TO | flags.DELETE_SELF | flags.ATTRIB
        while True:
            self._socket_came.clear()
            with Watcher(self._watch) as watcher:
                watched = any(watcher.add(folder, mask) for folder in self._path.parents)
                no_daemon = False
                try:
                    await self._connected()
                except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
                    reason, no_daemon = f"no daemon listens at {self._path}", True
                except EOFError:
                    reason = "the daemon closed the connection"
                except Exception as error:  # noqa: BLE001 - the agent must never fall silent: log the fault, and try again
                    reason = f"the daemon at {self._path} takes no report: {error or 'no answer'}"
                if reason != self._logged:
                    self._log(reason)
                    self._logged = reason
                wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, LAST_RETRY_S)
                await wait_for_event(self._socket_came, None if no_daemon and watched else wait_s)

    def _watch(self, events: list[Event]) -> None:
        """The socket, or the next folder on the way to it, may have come."""
        if any(event.overflow or os.path.basename(event.path) in self._path.parts for event in events):
            self._socket_came.set()

    async def _connected(self) -> NoReturn:
        """Report until the connection ends."""
        with short_name(self._path) as name:
            reader, writer = await asyncio.open_unix_connection(name)
        tasks: list[asyncio.Future[Any]] = []
        try:
            self._send(writer, listen=True)
            self._writer = writer
            async with asyncio.timeout(DEADLINE_S):
                answer = json.loads(await reader.readline() or b"null")
            if not isinstance(answer, dict):
                raise EOFError
            if not answer.get("ok"):
                raise ValueError(str(answer.get("error")))
            if not isinstance(every_s := answer.get("every_s"), int | float):
                raise ValueError("it does not say how often it wants one; are agent and node of the same version?")
            self._wait_s, self._logged = FIRST_RETRY_S, ""  # the next fault is a new one
            over, aging = asyncio.ensure_future(self._listen(reader)), asyncio.ensure_future(self._stay_young(writer, every_s))
            tasks = [over, aging]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if aging.done():
                aging.result()
            over.result()
            raise EOFError
        finally:
            self._writer = None
            self._news(None)
            self._cancel_next()
            writer.transport.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Take news until the daemon closes the connection, or refuses a report (ValueError)."""
        while line := await reader.readline():
            if "news" not in (message := json.loads(line)):
                raise ValueError(str(message.get("error")))
            self._news(message["news"])

    async def _stay_young(self, writer: asyncio.StreamWriter, every_s: float) -> NoReturn:
        """Send a proven report when the last one is `every_s` old. A change during the proof does not wait for it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._sent_s + every_s - loop.time())
            if loop.time() - self._sent_s >= every_s:
                async with asyncio.timeout(PROOF_S):
                    await self._prove()
                self._send(writer)

    def _send_change(self, writer: asyncio.StreamWriter) -> None:
        try:
            self._send(writer)
        except Exception:  # noqa: BLE001 - the first report of the next connection meets the fault again, and `run` logs it
            writer.transport.abort()

    def _send(self, writer: asyncio.StreamWriter, *, listen: bool = False) -> None:
        self._cancel_next()
        self._sent_s = asyncio.get_running_loop().time()
        if writer.transport.get_write_buffer_size() > MAX_UNREAD:
            writer.transport.abort()
        else:
            more = {"listen": True} if listen else {}
            writer.write(_line({"v": PROTOCOL, "tell": "presence", **more, **self._report()}))

    def _cancel_next(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None


def _line(message: dict[str, Any]) -> bytes:
    """The message as the daemon takes it. Names are cut, and sessions left out, if it would be too long."""
    line = json.dumps(message).encode() + b"\n"
    while len(line) > MAX_REQUEST and message["sessions"]:
        for session in message["sessions"]:
            session["inhibitors"] = [name[:20] for name in session["inhibitors"][:2]]
            session["why"] = session["why"][:40]
        if line == (line := json.dumps(message).encode() + b"\n"):
            message["sessions"].pop()
    return line
