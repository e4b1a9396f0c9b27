"""Idle time of an X server: alarms on the IDLETIME counter of its SYNC extension; not of XWayland, which sees X windows only.

There are two alarms. One fires when nobody has touched anything for `QUIET_S`, and reports for how long (the counter's
value). The other fires when the counter falls back, which is the first touch. Both are silent in between.

Sources: X Window System Protocol, version 11; X Synchronization Extension Protocol, version 3.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from supervisor.linux.small_files import read_plain
from supervisor.linux.text import one_line
from supervisor.sensors.session_agent.socket_source import SocketSource
from supervisor.sensors.session_agent.source import QUIET_S, Absent, Gone, Idle, boot_s

LOCAL: Final = re.compile(r"(?:unix)?:([0-9]+)(?:\.[0-9]+)?")
FOLDER: Final = "/tmp/.X11-unix"  # noqa: S108 - the X server's place
SOCKETS: Final = f"{FOLDER}/X"
LOCKS: Final = "/tmp/.X{}-lock"  # noqa: S108 - holds the pid of the server, or of the compositor that starts it when needed
COOKIE: Final = b"MIT-MAGIC-COOKIE-1"
MAX_COOKIES: Final = 1 << 16  # bytes of a file with cookies
MAX_LOCK: Final = 64  # bytes
MAX_EXTRA: Final = 1 << 16  # 4-byte units that follow the first 32 bytes of a message
IDLETIME: Final = "IDLETIME"
QUERY_EXTENSION: Final = 98
INITIALIZE, LIST_SYSTEM_COUNTERS, QUERY_COUNTER, CREATE_ALARM = 0, 1, 5, 8  # requests of the SYNC extension
POSITIVE_TRANSITION, NEGATIVE_TRANSITION = 0, 1
ERROR, REPLY, GENERIC_EVENT = 0, 1, 35
ALARM_NOTIFY: Final = 1  # after the extension's first event


class X11Idle(SocketSource):
    """One X display, such as ":0". `cookies`: files with cookies to try, in this order; then none at all."""

    def __init__(self, display: str, cookies: Callable[[], Sequence[Path]], quiet_s: float = QUIET_S) -> None:
        self._display, self._cookies = display, cookies
        super().__init__(f"display {display}", quiet_s)

    def _reset(self) -> None:
        super()._reset()
        self._answers: deque[asyncio.Future[bytes]] = deque()  # replies come in the order of the requests
        self._ids = 0  # the first number for resources of ours
        self._sync = self._alarm_event = self._counter = 0
        self._idle_since_s: float | None = None

    @property
    def reading(self) -> Idle | None:
        return Idle(f"XSync {IDLETIME} of {self._label}", self._idle_since_s) if self._ready else None

    async def prove(self) -> None:
        self._observe(_seconds(await self._ask(self._sync, QUERY_COUNTER, struct.pack("<I", self._counter)), 8))

    def _observe(self, idle_s: float) -> None:
        since_s = None if idle_s < self._quiet_s else boot_s() - idle_s
        flipped = (since_s is None) != (self._idle_since_s is None)
        self._idle_since_s = since_s
        if flipped:
            self._report()

    # --- the connection

    async def _connect(self) -> asyncio.StreamReader:
        local = LOCAL.fullmatch(self._display)
        if local is None:
            raise Gone(f"{self._label} is not on this machine")
        cookies = [cookie for path in self._cookies() for cookie in _cookies_in(path, local[1].encode())]
        reason = ""
        try:
            for cookie in [*cookies, b""]:
                reader = await self._open(SOCKETS + local[1])
                self._note_peer()
                if not (reason := await self._set_up(reader, cookie)):
                    return reader
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Absent(f"{self._label}: no X server ({error.strerror})") from error
        except (OSError, EOFError, struct.error) as error:
            reason = getattr(error, "strerror", None) or "it is no X server"
        raise Gone(f"{self._label} refuses us: {one_line(reason, 80)}")

    async def _open(self, path: str) -> asyncio.StreamReader:
        if self._writer is not None:
            self._writer.transport.abort()
        try:
            reader, self._writer = await asyncio.open_unix_connection(path)
        except FileNotFoundError:
            reader, self._writer = await asyncio.open_unix_connection(f"\0{path}")
        return reader

    async def _set_up(self, reader: asyncio.StreamReader, cookie: bytes) -> str:
        """Introduce ourselves; returns why the server refuses, empty if it does not."""
        name = COOKIE if cookie else b""
        self._send(struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(name), len(cookie)) + _padded(name) + _padded(cookie))
        accepted, length, units = struct.unpack("<BBxxxxH", await reader.readexactly(8))
        body = await reader.readexactly(4 * units)
        if accepted != 1:
            return body[:length].decode(errors="replace") or "no reason given"
        (self._ids,) = struct.unpack_from("<I", body, 4)
        return ""

    async def _begin(self) -> None:
        name = b"SYNC"
        found = await self._ask(QUERY_EXTENSION, 0, struct.pack("<Hxx", len(name)) + _padded(name))
        present, self._sync, first_event = found[8:11]
        if not present:
            raise Gone(f"{self._label} has no SYNC extension")
        self._alarm_event = first_event + ALARM_NOTIFY
        await self._ask(self._sync, INITIALIZE, struct.pack("<BBxx", 3, 1))
        counters = _counters(await self._ask(self._sync, LIST_SYSTEM_COUNTERS))
        if IDLETIME not in counters:
            raise Gone(f"{self._label} has no {IDLETIME} counter")
        self._counter = counters[IDLETIME]
        limit = int(self._quiet_s * 1000)
        for number, (test, value) in enumerate(((POSITIVE_TRANSITION, limit), (NEGATIVE_TRANSITION, limit - 1))):
            # The alarm's number; which values follow (all six); counter, absolute value, test, no delta, events.
            values = (self._ids + number, 0x3F, self._counter, 0, 0, value, test, 0, 0, 1)
            self._request(self._sync, CREATE_ALARM, struct.pack("<10I", *values))
        await self.prove()

    def _request(self, opcode: int, minor: int, body: bytes = b"") -> None:
        self._send(struct.pack("<BBH", opcode, minor, 1 + len(body) // 4) + body)

    async def _ask(self, opcode: int, minor: int, body: bytes = b"") -> bytes:
        self._request(opcode, minor, body)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        return await self._answered(answer)

    async def _take(self, reader: asyncio.StreamReader) -> None:
        message = await reader.readexactly(32)
        kind, detail, units = struct.unpack_from("<BBxxI", message)
        if kind == ERROR:
            raise Gone(f"{self._label} refuses a request (error {detail})")
        if kind in (REPLY, GENERIC_EVENT):
            if units > MAX_EXTRA:
                raise struct.error("a message of such a length")
            message += await reader.readexactly(4 * units)
        if kind == REPLY:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result(message)
        elif kind == self._alarm_event:
            self._observe(_seconds(message, 8))


def plain_name(display: str) -> str:
    """A display of this machine as ":7"; empty: it is none."""
    local = LOCAL.fullmatch(display)
    return f":{local[1]}" if local else ""


def displays(folder: Path) -> Iterator[tuple[str, int]]:
    """The X displays that listen in a folder, with the uid of their server."""
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(folder)):
            if entry[:1] == "X" and entry[1:].isdecimal():
                with contextlib.suppress(OSError):
                    yield f":{entry[1:]}", os.stat(folder / entry).st_uid


def lock_holder(display: str) -> int:
    """The process that holds a display's number; 0: not known."""
    with contextlib.suppress(OSError, ValueError):
        return int(read_plain(LOCKS.format(display[1:]), MAX_LOCK))
    return 0


def _seconds(message: bytes, at: int) -> float:
    """A counter's value, which is in milliseconds."""
    high, low = struct.unpack_from("<iI", message, at)
    return float((high << 32) + low) / 1000


def _counters(reply: bytes) -> dict[str, int]:
    """Counters by name: id, resolution (8 bytes), length of the name (2 bytes), the name, padded to a multiple of 4."""
    (count,) = struct.unpack_from("<I", reply, 8)
    known, at = {}, 32
    for _ in range(count):
        number, length = struct.unpack_from("<I8xH", reply, at)
        known[reply[at + 14 : at + 14 + length].decode("latin-1")] = number
        at += (14 + length + 3) // 4 * 4
    return known


def _cookies_in(path: Path, display: bytes) -> Iterator[bytes]:
    """The cookies for a display of this machine in an Xauthority file: for each the family, and four texts with their length
    before them: address, display number (empty: any), the cookie's kind, the cookie."""
    with contextlib.suppress(OSError, struct.error):
        raw, at = read_plain(path, MAX_COOKIES, follow=True), 0
        while at < len(raw):
            at += 2
            texts = []
            for _ in range(4):
                (length,) = struct.unpack_from(">H", raw, at)
                texts.append(raw[at + 2 : at + 2 + length])
                at += 2 + length
            _, number, kind, cookie = texts
            if kind == COOKIE and number in (b"", display):
                yield cookie


def _padded(text: bytes) -> bytes:
    return text + b"\0" * (-len(text) % 4)
