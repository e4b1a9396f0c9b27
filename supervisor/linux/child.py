"""A child process whose end is seen in the event loop. `asyncio`'s own subprocesses cost a thread each on Python 3.11."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from supervisor.linux.bounded import wait_for_event


class Child:
    """A process in its own session, which also keeps a Ctrl-C at our terminal from it, with `/` as its working directory.

    When it ends, everything left in its process group is killed before it is reaped, while the group's id is still its own.

    Args:
        on_end: gets the exit code, negative for a signal.
        options: of Popen.

    Raises:
        OSError, ValueError: it cannot be started.
    """

    def __init__(self, argv: Sequence[str], on_end: Callable[[int], None] = lambda _: None, **options: Any) -> None:
        self._loop, self._on_end = asyncio.get_running_loop(), on_end
        self._gone = asyncio.Event()
        self.process: subprocess.Popen[bytes] = subprocess.Popen(list(argv), cwd="/", start_new_session=True, **options)
        try:
            self._pidfd: int | None = os.pidfd_open(self.process.pid)
        except OSError:  # without it we would not see its end
            with self.process:
                self.process.kill()
            raise
        self._loop.add_reader(self._pidfd, self._ended)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def gone(self) -> bool:
        """Whether it has ended and is reaped."""
        return self._gone.is_set()

    @property
    def dead(self) -> bool:
        """It has ended, though the loop may not know that yet."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def kill(self) -> None:
        """Kill it and its group, without waiting."""
        if not self.gone:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for its end; returns whether it is gone."""
        return await wait_for_event(self._gone, timeout_s)

    def abandon(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _ended(self) -> None:
        self.kill()
        code = self.process.wait()
        self.abandon()
        self._gone.set()
        self._on_end(code)
