"""A helper process that answers one line for one line, and that may be left behind when it hangs in the kernel (R12).

All of it runs in the event loop: pipes that do not block, a pidfd that says when the process is gone, a deadline for
each answer. `asyncio`'s own subprocesses are not used, since on Python 3.11 each of them costs a thread. A process in
uninterruptible sleep cannot be killed: it is then `stuck`, and whoever started it must not start another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from supervisor.linux.bounded import wait_for_event
from supervisor.linux.text import one_line

MAX_LINE: Final = 1 << 20
END_S: Final = 1.0  # from the end of its stdin to the kill
CHUNK: Final = 1 << 16


class Helper:
    """One such process, started by the constructor.

    Args:
        argv: the command.
        on_line: takes each answer, in the loop's thread.
        on_failure: takes the reason, in words, when it has hung or ended by itself; it is being killed by then.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self, argv: Sequence[str], on_line: Callable[[bytes], None], on_failure: Callable[[str], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_line, self._on_failure = on_line, on_failure
        self._process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # a Ctrl-C at the daemon's terminal is the daemon's business
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._pipes = [pipe for pipe in pipes if pipe is not None]
        try:
            self._pidfd: int | None = os.pidfd_open(self._process.pid)
        except OSError:  # its end could not be seen: it must not begin
            self._process.kill()
            self._process.wait()
            for pipe in self._pipes:
                pipe.close()
            raise
        self._stdin, self._stdout, self._stderr = (pipe.fileno() for pipe in self._pipes)
        self._line = b""
        self._said = b""
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        self._gone = asyncio.Event()
        self._let_go_at = 0.0  # by the loop's clock
        self.asked = False
        self.hung = False
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        self._loop.add_reader(self._stdout, self._read)
        self._loop.add_reader(self._stderr, self._drain)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """It has ended and is reaped."""
        return self._gone.is_set()

    @property
    def stuck(self) -> bool:
        """It is still there long after it was told to end and killed: it hangs in the kernel."""
        return not self._open and not self.gone and self._loop.time() - self._let_go_at > 2 * END_S

    def ask(self, line: bytes, deadline_s: float) -> None:
        """Send a request; its answer must come within `deadline_s` seconds."""
        self.asked = True
        self._timer = self._loop.call_later(deadline_s, self._late, deadline_s)
        try:
            if os.write(self._stdin, line) != len(line):
                self._loop.call_soon(self._fail, "it takes no requests")
        except OSError as error:
            self._loop.call_soon(self._fail, f"it takes no requests ({error.strerror})")

    def end(self) -> None:
        """Let it end by itself, which closes what it holds; killed when it has not within a second."""
        if self._open:
            self._close()
            self._loop.call_later(END_S, self.kill)

    def kill(self) -> None:
        """Kill it, without waiting."""
        self._close()
        if not self.gone:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def wait(self, timeout_s: float) -> bool:
        """Whether it is gone, within `timeout_s` seconds."""
        return await wait_for_event(self._gone, timeout_s)

    def forget(self) -> None:
        """Let go of a process that cannot be killed: nothing of it is watched any more."""
        self._close()
        self._unwatch()

    def _read(self) -> None:
        try:
            chunk = os.read(self._stdout, CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._drain()
            said = one_line(self._said.decode(errors="replace").strip().rsplit("\n", 1)[-1], 200)
            self._fail("it ended" + (f": {said}" if said else ""))
        self._line += chunk
        if len(self._line) > MAX_LINE:
            self._fail("its answer is too long")
        while self._open and b"\n" in self._line:
            line, self._line = self._line.split(b"\n", 1)
            if self.asked:
                self._answered()
                self._on_line(line)
            else:
                self._fail("it spoke without being asked")

    def _late(self, deadline_s: float) -> None:
        self.hung = True
        self._fail(f"no answer within {deadline_s:g} s")

    def _answered(self) -> None:
        self.asked = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drain(self) -> None:
        """Keep the end of what it says on stderr, so that it never blocks on a full pipe."""
        if not self._open:
            return
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._stderr, CHUNK)
            if not chunk:
                self._loop.remove_reader(self._stderr)
            self._said = (self._said + chunk)[-2000:]

    def _fail(self, reason: str) -> None:
        if self._open:
            self.kill()
            self._on_failure(reason)

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._let_go_at = self._loop.time()
            self._answered()
            self._loop.remove_reader(self._stdout)
            self._loop.remove_reader(self._stderr)
            for pipe in self._pipes:
                pipe.close()

    def _reap(self) -> None:
        if self._process.poll() is None:
            return
        self._gone.set()
        self._unwatch()

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
