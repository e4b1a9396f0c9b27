"""A site's own checks (host.checks): commands that must all exit 0, run in the background, never waited for.

Each runs at most every `host.check_interval_sec`, when a tick asks and its last answer is that old; no timer runs at
rest. It has its own process group, no terminal, no input, and nobody reads what it prints; it is killed when it takes
too long. Until the first answer, and whenever the newest one is too old, the answer is unknown (R12). A check that
cannot be killed is not started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

from states.observation import NEVER
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock
from supervisor.sensors.base import Wake

KEPT: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR")  # of the environment
STOP_S: Final = 1.0
TIMEOUT_S: Final = 5.0  # what one check may take before it is killed


class _Check:
    """One command and its newest answer."""

    def __init__(self, argv: Sequence[str], clock: Clock, interval_s: float, timeout_s: float) -> None:
        self._argv, self._clock, self._interval_s, self._timeout_s = list(argv), clock, interval_s, timeout_s
        self._name = shlex.join(argv)[:60]
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._tried_at_s = self._answered_at_s = NEVER
        self._unfit = ""
        self._error = "has not answered yet"
        self._wake: Wake = lambda: None
        self._over = asyncio.Event()

    def begin(self, wake: Wake) -> None:
        """Start it, if it is due."""
        now_s = self._clock.now_s()
        self._wake = wake
        if self._process is not None or 0 <= now_s - self._tried_at_s < self._interval_s:
            return
        self._tried_at_s = now_s
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                self._argv, stdin=null, stdout=null, stderr=null, cwd="/", env=environment, process_group=0
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except (OSError, ValueError) as error:
            if self._process is not None:  # its end could not be seen: it must not begin
                self._kill()
                self._process.wait()
                self._process = None
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._answer("", f"cannot be started: {why}")
            return
        self._over.clear()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._ended)
        self._timer = loop.call_later(self._timeout_s, self._late)

    def verdict(self, now_s: float) -> tuple[str, str]:
        """(unfit, unknown) in words; both empty: fit."""
        age_s = now_s - self._answered_at_s
        if not self._error and not 0 <= age_s <= self._interval_s + self._timeout_s + max(self._interval_s, 30.0):
            return "", self._words("has not answered for too long")
        return self._unfit, self._error and self._words(self._error)

    async def stop(self) -> None:
        """Kill it, and wait a moment for its end."""
        if self._process is not None:
            self._kill()
            await wait_for_event(self._over, STOP_S)
        self._let_go()

    def _ended(self) -> None:
        """The leader is dead, and not yet reaped, so that its group is still its own: nothing of it lives on."""
        if self._process is None:
            return
        self._kill()
        code = self._process.wait()
        late = self._timer is None
        self._let_go()
        self._over.set()
        if not late:  # else it has been told already
            self._answer(self._words("is against it") if code > 0 else "", "" if code >= 0 else f"died by signal {-code}")

    def _late(self) -> None:
        self._timer = None
        self._kill()
        self._answer("", f"took longer than {self._timeout_s:g} s")

    def _answer(self, unfit: str, error: str) -> None:
        before = self._unfit, self._error
        self._answered_at_s, self._unfit, self._error = self._clock.now_s(), unfit, error
        if before != (unfit, error):
            self._wake()

    def _words(self, what: str) -> str:
        return f"check `{self._name}` {what} (host.checks)"

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._process = None


class SiteChecks:
    """All of host.checks."""

    def __init__(self, checks: Sequence[Sequence[str]], clock: Clock, interval_s: float, timeout_s: float = TIMEOUT_S) -> None:
        self._checks = [_Check(argv, clock, interval_s, timeout_s) for argv in checks]
        self._wake: Wake | None = None

    async def start(self, wake: Wake) -> None:
        """Run them all for the first time, without waiting for any; their answers wake."""
        self._wake = wake
        for check in self._checks:
            check.begin(wake)

    async def stop(self) -> None:
        """Kill what runs."""
        self._wake = None
        await asyncio.gather(*(check.stop() for check in self._checks))

    def verdicts(self, now_s: float) -> tuple[list[str], list[str]]:
        """(unfit, unknown) in words, each empty when nothing is; starts those that are due."""
        for check in self._checks:
            if self._wake is not None:
                check.begin(self._wake)
        found = [check.verdict(now_s) for check in self._checks]
        return [unfit for unfit, _ in found if unfit], [unknown for _, unknown in found if unknown]
