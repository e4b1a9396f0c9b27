"""A helper process that answers one line for each request, and that can be abandoned when it hangs in the kernel.

All of it runs in the event loop, with a deadline for each answer. A process in uninterruptible sleep cannot be killed: the
helper is then `stuck`, and its owner must not start another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from supervisor.linux.child import Child
from supervisor.linux.text import one_line

MAX_LINE: Final = 1 << 20
END_S: Final = 1.0  # from the end of its stdin to the kill
CHUNK: Final = 1 << 16


class HelperProcess(Protocol):
    """The process itself; see Child."""

    @property
    def pid(self) -> int: ...
    @property
    def gone(self) -> bool: ...
    @property
    def dead(self) -> bool: ...
    def kill(self) -> None: ...
    async def wait(self, timeout_s: float) -> bool: ...
    def abandon(self) -> None: ...


Streams = tuple[int, int, int]  # its ends of its stdin, stdout and stderr


def child(argv: Sequence[str]) -> Callable[[Streams], HelperProcess]:
    """What starts a helper as our own child."""
    return lambda streams: Child(argv, stdin=streams[0], stdout=streams[1], stderr=streams[2])


class Helper:
    """One such process, started by the constructor.

    Args:
        start: starts it; see `child`.
        on_line: gets each answer, in the loop's thread.
        on_failure: gets the reason when the helper hangs, misbehaves or ends early; it has been killed by then.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        start: Callable[[Streams], HelperProcess],
        on_line: Callable[[bytes], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_line, self._on_failure = on_line, on_failure
        pipes: list[int] = []
        try:
            for _ in range(3):
                pipes += os.pipe()
            theirs, self._stdin, self._stdout, their_out, self._stderr, their_err = pipes
            self._process = start((theirs, their_out, their_err))
        except BaseException:
            for fd in pipes:
                os.close(fd)
            raise
        for fd in (theirs, their_out, their_err):
            os.close(fd)
        self._line = b""
        self._errors = b""  # the last of its stderr
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        self._closed_at_s = 0.0  # by the loop's clock
        self.busy = False  # it owes an answer
        self.hung = False
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        self._loop.add_reader(self._stdout, self._read)
        self._loop.add_reader(self._stderr, self._drain)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def gone(self) -> bool:
        return self._process.gone

    @property
    def dead(self) -> bool:
        return self._process.dead

    @property
    def stuck(self) -> bool:
        """Whether it is still there long after it was killed: it hangs in the kernel."""
        return not self._open and not self.gone and self._loop.time() - self._closed_at_s > 2 * END_S

    def ask(self, line: bytes, deadline_s: float) -> None:
        """Send a request; its answer must come within `deadline_s` seconds."""
        self.busy = True
        self._timer = self._loop.call_later(deadline_s, self._late, deadline_s)
        try:
            if os.write(self._stdin, line) != len(line):
                self._loop.call_soon(self._fail, "it takes no requests")
        except OSError as error:
            self._loop.call_soon(self._fail, f"it takes no requests ({error.strerror})")

    def end(self) -> None:
        """Close its stdin, so that it ends and closes what it has open; kill it after a second."""
        if self._open:
            self._close()
            self._loop.call_later(END_S, self.kill)

    def kill(self) -> None:
        self._close()
        self._process.kill()

    async def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for its end; returns whether it is gone."""
        return await self._process.wait(timeout_s)

    async def end_or_abandon(self, timeout_s: float) -> None:
        """Let it end within `timeout_s` seconds; else kill it, wait as long again, and then stop watching it."""
        self.end()
        if not await self.wait(timeout_s):
            self.kill()
            await self.wait(timeout_s)
            self._process.abandon()

    def _read(self) -> None:
        try:
            chunk = os.read(self._stdout, CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._drain()
            reason = one_line(self._errors.decode(errors="replace").strip().rsplit("\n", 1)[-1], 200)
            self._fail("it ended" + (f": {reason}" if reason else ""))
        self._line += chunk
        if len(self._line) > MAX_LINE:
            self._fail("its answer is too long")
        while self._open and b"\n" in self._line:
            line, self._line = self._line.split(b"\n", 1)
            if self.busy:
                self._answered()
                self._on_line(line)
            else:
                self._fail("it spoke without being asked")

    def _late(self, deadline_s: float) -> None:
        self.hung = True
        self._fail(f"no answer within {deadline_s:g} s")

    def _answered(self) -> None:
        self.busy = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drain(self) -> None:
        """Read its stderr, so that it never blocks on a full pipe, and keep the end."""
        if not self._open:
            return
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._stderr, CHUNK)
            if not chunk:
                self._loop.remove_reader(self._stderr)
            self._errors = (self._errors + chunk)[-2000:]

    def _fail(self, reason: str) -> None:
        if self._open:
            self.kill()
            self._on_failure(reason)

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._closed_at_s = self._loop.time()
            self._answered()
            self._loop.remove_reader(self._stdout)
            self._loop.remove_reader(self._stderr)
            for fd in (self._stdin, self._stdout, self._stderr):
                os.close(fd)
