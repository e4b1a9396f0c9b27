"""What the sources of a Wayland compositor and of an X server share: one connection, which is watched until it ends.

Both speak only the few messages that they need. On a non-blocking socket no display can hang the agent. The usual client
libraries block, so each display would need a thread, and they take more memory.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from supervisor.linux.small_files import read_small
from supervisor.sensors.session_agent.source import ANSWER_S, Gone, Hung, Idle, IdleSource

T = TypeVar("T")


class SocketSource(IdleSource):
    """`label` names the display in messages: "wayland-0"."""

    def __init__(self, label: str, quiet_s: float) -> None:
        self._label, self._quiet_s = label, quiet_s
        self._reset()

    def _reset(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Future[None] | None = None
        self._changed: Callable[[], None] = lambda: None
        self._ready = False
        self._reported: Idle | None = None

    async def _connect(self) -> asyncio.StreamReader:
        """Connect, and set `_writer`."""
        raise NotImplementedError

    async def _begin(self) -> None:
        """Ask for the events."""
        raise NotImplementedError

    async def _take(self, reader: asyncio.StreamReader) -> None:
        """Read one message."""
        raise NotImplementedError

    async def run(self, changed: Callable[[], None]) -> None:
        try:
            try:
                async with asyncio.timeout(ANSWER_S):
                    reader = await self._connect()
            except TimeoutError as error:
                raise self._hung() from error
            self._listening = asyncio.ensure_future(self._listen(reader))
            try:
                await self._begin()
                self._ready, self._changed = True, changed
                self._report()
                await self._listening
            finally:
                self._listening.cancel()
                await asyncio.gather(self._listening, return_exceptions=True)
        finally:
            if self._writer is not None:
                self._writer.transport.abort()
            self._reset()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                await self._take(reader)
        except (OSError, EOFError) as error:
            raise Gone(f"{self._label} has gone") from error
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise Gone(f"{self._label} sends messages of another protocol") from error

    async def _answered(self, answer: asyncio.Future[T]) -> T:
        """The answer to a request, in `ANSWER_S`."""
        if self._listening is None:
            raise Gone(f"{self._label} has gone")
        either: list[asyncio.Future[Any]] = [answer, self._listening]
        await asyncio.wait(either, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        if self._listening.done():
            self._listening.result()
        if not answer.done():
            raise self._hung()
        return answer.result()

    def _send(self, message: bytes) -> None:
        if self._writer is None:
            raise Gone(f"{self._label} has gone")
        self._writer.write(message)

    def _hung(self) -> Hung:
        return Hung(f"{self._label} does not answer" + (f" ({program(self.pid)})" if self.pid else ""))

    def _note_peer(self) -> None:
        """Whose display it is."""
        if self._writer is not None:
            self.pid = peer_pid(self._writer.get_extra_info("socket"))

    def _report(self) -> None:
        """Call `changed` if the reading is another one: two events may follow one touch."""
        if (reading := self.reading) != self._reported:
            self._reported = reading
            self._changed()


def program(pid: int) -> str:
    """A process, for people."""
    return f"{read_small(f'/proc/{pid}/comm') or 'unknown'}, pid {pid}"


def peer_pid(peer: socket.socket) -> int:
    """The process that made the socket at the other end."""
    return int(struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
