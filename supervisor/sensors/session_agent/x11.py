"""Idle time of an X server: XSync alarms on its IDLETIME counter; only for sessions that logind calls x11.

python-xlib blocks, and a hung X server blocks it forever. So a thread holds the connection, and the event loop waits for it
with a deadline and leaves it when it hangs. The next thread starts only when the one that was left has ended: at most one
thread of a display can hang.

There are two alarms. One fires when nobody has touched anything for `QUIET_S`, and reports for how long (the counter's
value). The other fires when the counter falls back, which is the first touch. Both are silent in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from supervisor.linux.bounded import wait_for_event
from supervisor.sensors.session_agent.source import ANSWER_S, QUIET_S, Gone, Idle, boot_s

IDLETIME: Final = "IDLETIME"
NO_COOKIE: Final = "/nonexistent"  # an empty file would make python-xlib write to stderr
ENDING_S: Final = 0.1
# Only one thread at a time may connect: python-xlib takes the cookie's file from the environment.
_CONNECTING: Final = threading.Lock()
_LEFT: Final[dict[str, threading.Thread]] = {}  # the last thread of each display


class X11Idle:
    """One X display, such as ":0". `cookies`: files with cookies to try, in this order; then none at all."""

    pid = 0

    def __init__(self, display: str, cookies: Callable[[], Sequence[Path]], quiet_s: float = QUIET_S) -> None:
        self._display, self._cookies, self._quiet_s = display, cookies, quiet_s
        self._idle_since_s: float | None = None
        self._proven = False
        self._thread: _Watcher | None = None
        self._changed: Callable[[], None] = lambda: None

    @property
    def reading(self) -> Idle | None:
        """See `IdleSource`."""
        if not self._proven:
            return None
        return Idle(f"XSync {IDLETIME} of display {self._display}", self._idle_since_s)

    async def run(self, changed: Callable[[], None]) -> None:
        """See `IdleSource`."""
        left = _LEFT.get(self._display)
        if left is not None and left.is_alive():
            await asyncio.sleep(ENDING_S)  # it may be about to end
            if left.is_alive():
                raise Gone(f"display {self._display} hangs")
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        first = asyncio.Event()

        def observed(idle_s: float | None, at_s: float) -> None:
            if over.done():  # the thread was left
                return
            since_s = None if idle_s is None or idle_s < self._quiet_s else at_s - idle_s
            new = not self._proven or (since_s is None) != (self._idle_since_s is None)
            self._proven, self._idle_since_s = True, since_s
            first.set()
            if new:
                self._changed()

        def ended(reason: str) -> None:
            first.set()
            if not over.done():
                over.set_exception(Gone(reason))

        def post(call: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(call, *arguments)

        self._changed = changed
        self._thread = thread = _Watcher(self._display, list(self._cookies()), self._quiet_s, post, observed, ended)
        thread.start()
        try:
            if not await wait_for_event(first, ANSWER_S):
                raise Gone(f"display {self._display} does not answer")
            await over
        finally:
            self._proven, self._thread, self._changed = False, None, lambda: None
            over.cancel()
            thread.end()
            _LEFT[self._display] = thread

    async def prove(self) -> None:
        """Read the counter again."""
        if self._thread is None:
            raise Gone(f"display {self._display} has gone")
        answered = asyncio.Event()
        self._thread.ask(answered)
        if not await wait_for_event(answered, ANSWER_S):
            raise Gone(f"display {self._display} does not answer")


class _Watcher(threading.Thread):
    """Holds the connection.

    Args:
        display: the display's name.
        cookies: files with cookies.
        quiet_s: how long nobody must touch anything before an alarm fires.
        post: calls a function in the loop's thread.
        observed: called with the counter in seconds (None: touched just now) and the time.
        ended: called with the reason.
    """

    def __init__(
        self,
        display: str,
        cookies: list[Path],
        quiet_s: float,
        post: Callable[..., None],
        observed: Callable[[float | None, float], None],
        ended: Callable[[str], None],
    ) -> None:
        super().__init__(name=f"x11 {display}", daemon=True)
        self._display, self._cookies, self._quiet_s = display, cookies, quiet_s
        self._post, self._observed, self._ended = post, observed, ended
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipe = threading.Lock()  # held to write and to close: after the close its number may be another file's
        self._asked: list[asyncio.Event] = []
        self._over = False

    def ask(self, answered: asyncio.Event) -> None:
        """Read the counter in the thread, report it, then set `answered`."""
        self._asked.append(answered)
        self._wake()

    def end(self) -> None:
        """End as soon as possible."""
        self._over = True
        self._wake()

    def _wake(self) -> None:
        with self._pipe, contextlib.suppress(OSError):
            os.write(self._write, b".")

    def run(self) -> None:
        server = None
        try:
            server = self._connect()
            self._watch(server)
        except Gone as error:
            self._post(self._ended, str(error))
        except Exception as error:  # noqa: BLE001 - python-xlib raises all kinds of errors; no traceback reaches a user
            reason = f"display {self._display}: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
            self._post(self._ended, reason)
        finally:
            if server is not None:
                with contextlib.suppress(Exception):
                    server.close()
            with self._pipe:
                os.close(self._read)
                os.close(self._write)
                self._read = self._write = -1

    def _connect(self) -> _Server:
        why = "there is no cookie"
        for cookie in [*self._cookies, None]:
            try:
                return _Server(self._display, cookie)
            except Exception as error:  # noqa: BLE001 - as above; the next cookie may fit
                why = " ".join(str(error).split()).removeprefix(f"Can't connect to display \"{self._display}\": ")
        raise Gone(f"display {self._display} refuses us: {why[:80]}")

    def _watch(self, server: _Server) -> None:
        server.arm(self._quiet_s)
        self._post(self._observed, server.idle_s(), boot_s())
        while not self._over:
            # Events that came with an answer are in the library's queue already.
            while server.pending():
                if (idle_s := server.alarm()) is not None:
                    self._post(self._observed, None if idle_s < self._quiet_s else idle_s, boot_s())
            if self._asked:
                answered, self._asked = self._asked, []
                self._post(self._observed, server.idle_s(), boot_s())
                for event in answered:
                    self._post(event.set)
                continue
            ready, _, _ = select.select([server.fileno(), self._read], [], [])
            if self._read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._read, 64)


class _Server:
    """The connection, and the part of the SYNC extension that is needed, which python-xlib lacks."""

    def __init__(self, display: str, cookie: Path | None) -> None:
        with _CONNECTING, _environment("XAUTHORITY", str(cookie or NO_COOKIE)):
            self._display = _display(display)
        self._sync = _declare()
        try:
            self._counter = self._find_counter(display)
        except Gone:
            self.close()
            raise

    def _find_counter(self, display: str) -> int:
        from Xlib.protocol import request

        found = request.QueryExtension(display=self._display, name="SYNC")
        if not found.present:
            raise Gone(f"display {display} has no SYNC extension")
        self._opcode = found.major_opcode
        self._display.add_extension_event(found.first_event + 1, self._sync.AlarmNotify)
        self._sync.Initialize(display=self._display, opcode=self._opcode, major=3, minor=1)
        listed = self._sync.ListSystemCounters(display=self._display, opcode=self._opcode)
        known = _counters(bytes(listed.raw), listed.count)
        if IDLETIME not in known:
            raise Gone(f"display {display} has no {IDLETIME} counter")
        return known[IDLETIME]

    def arm(self, quiet_s: float) -> None:
        """One alarm for "idle for so long", one for "touched again"; both stay armed."""
        limit = int(quiet_s * 1000)
        for test, value in ((self._sync.POSITIVE_TRANSITION, limit), (self._sync.NEGATIVE_TRANSITION, limit - 1)):
            self._sync.CreateAlarm(
                display=self._display, opcode=self._opcode, alarm=self._display.allocate_resource_id(), mask=0x3F,
                counter=self._counter, value_type=0, value_hi=0, value_lo=value, test=test, delta_hi=0, delta_lo=0, events=1,
            )  # fmt: skip
        self._display.flush()

    def idle_s(self) -> float:
        """The counter: seconds since the last touch."""
        reply = self._sync.QueryCounter(display=self._display, opcode=self._opcode, counter=self._counter)
        return _seconds(reply)

    def pending(self) -> bool:
        """Whether there is an event to read."""
        return bool(self._display.pending_events())

    def alarm(self) -> float | None:
        """The counter's value in the next event, in seconds; None: the event is no alarm."""
        event = self._display.next_event()
        return _seconds(event) if isinstance(event, self._sync.AlarmNotify) else None

    def fileno(self) -> int:
        """For select."""
        return int(self._display.fileno())

    def close(self) -> None:
        """Disconnect."""
        self._display.close()


def _seconds(counter: Any) -> float:
    return float((counter.value_hi << 32) + counter.value_lo) / 1000


def _counters(raw: bytes, count: int) -> dict[str, int]:
    """Counters by name: id, resolution (8 bytes), length of the name (2 bytes), the name, padded to a multiple of 4."""
    known, at = {}, 0
    for _ in range(count):
        number, length = struct.unpack_from("=I8xH", raw, at)
        known[raw[at + 14 : at + 14 + length].decode("latin-1")] = number
        at += (14 + length + 3) // 4 * 4
    return known


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _display(name: str) -> Any:
    """The library's low level: the upper one has classes for windows and fonts, and takes a MiB more."""
    from Xlib.protocol import display

    class Display(display.Display):  # type: ignore[misc]
        resource_classes: Final[dict[str, Any]] = {}

    return Display(name)


def _declare() -> Any:
    """The requests of the SYNC extension (X Synchronization Extension Protocol, version 3.1)."""
    from Xlib.protocol import rq

    opcode, length = rq.Card8("opcode"), rq.RequestLength()
    head = (rq.ReplyCode(), rq.Pad(1), rq.Card16("sequence_number"), rq.ReplyLength())

    class Initialize(rq.ReplyRequest):  # type: ignore[misc]
        _request = rq.Struct(opcode, rq.Opcode(0), length, rq.Card8("major"), rq.Card8("minor"), rq.Pad(2))
        _reply = rq.Struct(*head, rq.Card8("major"), rq.Card8("minor"), rq.Pad(22))

    class ListSystemCounters(rq.ReplyRequest):  # type: ignore[misc]
        _request = rq.Struct(opcode, rq.Opcode(1), length)
        _reply = rq.Struct(*head, rq.Card32("count"), rq.Pad(20), rq.List("raw", rq.Card8Obj))

    class QueryCounter(rq.ReplyRequest):  # type: ignore[misc]
        _request = rq.Struct(opcode, rq.Opcode(5), length, rq.Card32("counter"))
        _reply = rq.Struct(*head, rq.Int32("value_hi"), rq.Card32("value_lo"), rq.Pad(16))

    class CreateAlarm(rq.Request):  # type: ignore[misc]
        _request = rq.Struct(
            opcode, rq.Opcode(8), length, rq.Card32("alarm"), rq.Card32("mask"), rq.Card32("counter"), rq.Card32("value_type"),
            rq.Int32("value_hi"), rq.Card32("value_lo"), rq.Card32("test"), rq.Int32("delta_hi"), rq.Card32("delta_lo"),
            rq.Card32("events"),
        )  # fmt: skip

    class AlarmNotify(rq.Event):  # type: ignore[misc]
        _code = None
        _fields = rq.Struct(
            rq.Card8("type"), rq.Card8("kind"), rq.Card16("sequence_number"), rq.Card32("alarm"), rq.Int32("value_hi"),
            rq.Card32("value_lo"), rq.Int32("alarm_hi"), rq.Card32("alarm_lo"), rq.Card32("time"), rq.Card8("state"), rq.Pad(3),
        )  # fmt: skip

    requests = (Initialize, ListSystemCounters, QueryCounter, CreateAlarm, AlarmNotify)
    return SimpleNamespace(POSITIVE_TRANSITION=0, NEGATIVE_TRANSITION=1, **{each.__name__: each for each in requests})
