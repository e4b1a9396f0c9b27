"""A site's own checks (host.checks): commands that must all exit 0. They run in the background, and nobody waits for them.

Each runs at most every `host.check_interval_sec`, when a tick asks and its last answer is that old; there is no timer. A check
has its own process group and no terminal or input, and its output is discarded; it is killed when it takes too long. Until the
first answer, and when the newest is too old, the result is unknown. A check that cannot be killed is not started again.
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
from supervisor.linux.text import error_text
from supervisor.sensors.base import Wake
from supervisor.sensors.host.findings import FIT, Findings, merge

ENVIRONMENT: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR")  # what a check gets of ours
STOP_S: Final = 1.0
TIMEOUT_S: Final = 5.0  # what one check may take before it is killed


class _SiteCheck:
    """One command and its newest answer."""

    def __init__(self, argv: Sequence[str], clock: Clock, interval_s: float, timeout_s: float) -> None:
        self._argv, self._clock, self._interval_s, self._timeout_s = list(argv), clock, interval_s, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._started_at_s = self._answered_at_s = NEVER
        self._found = self._unknown("has not answered yet")
        self._wake: Wake = lambda: None
        self._gone = asyncio.Event()

    def begin(self, wake: Wake) -> None:
        """Start it, if it is due."""
        now_s = self._clock.now_s()
        self._wake = wake
        if self._process is not None or 0 <= now_s - self._started_at_s < self._interval_s:
            return
        self._started_at_s = now_s
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                self._argv, stdin=null, stdout=null, stderr=null, cwd="/", env=environment, process_group=0
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except (OSError, ValueError) as error:
            if self._process is not None:  # without a pidfd we would not see its end
                self._kill()
                self._process.wait()
                self._process = None
            self._answer(self._unknown(f"cannot be started: {error_text(error)}"))
            return
        self._gone.clear()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._ended)
        self._timer = loop.call_later(self._timeout_s, self._late)

    def findings(self, now_s: float) -> Findings:
        """The newest answer, if it is not too old."""
        max_age_s = self._interval_s + self._timeout_s + max(self._interval_s, 30.0)
        if not self._found.unknown and not 0 <= now_s - self._answered_at_s <= max_age_s:
            return self._unknown("has not answered for too long")
        return self._found

    async def stop(self) -> None:
        """Kill it, and wait a moment for its end."""
        if self._process is not None:
            self._kill()
            await wait_for_event(self._gone, STOP_S)
        self._forget()

    def _ended(self) -> None:
        """The leader is dead and not yet reaped, so that its group is still its own: kill what is left of it."""
        if self._process is None:
            return
        self._kill()
        code = self._process.wait()
        late = self._timer is None
        self._forget()
        self._gone.set()
        if late:
            return  # it was answered when its time was over
        if code < 0:
            self._answer(self._unknown(f"died by signal {-code}"))
        else:
            self._answer(FIT if code == 0 else Findings(unfit=(self._text("is against it"),)))

    def _late(self) -> None:
        self._timer = None
        self._kill()
        self._answer(self._unknown(f"took longer than {self._timeout_s:g} s"))

    def _answer(self, found: Findings) -> None:
        before = self._found
        self._answered_at_s, self._found = self._clock.now_s(), found
        if before != found:
            self._wake()

    def _unknown(self, what: str) -> Findings:
        return Findings(unknown=(self._text(what),))

    def _text(self, what: str) -> str:
        return f"check `{shlex.join(self._argv)[:60]}` {what} (host.checks)"

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _forget(self) -> None:
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
        self._checks = [_SiteCheck(argv, clock, interval_s, timeout_s) for argv in checks]
        self._wake: Wake | None = None

    async def start(self, wake: Wake) -> None:
        """Run them all for the first time, without waiting for any; their answers wake."""
        self._wake = wake
        for check in self._checks:
            check.begin(wake)

    async def stop(self) -> None:
        """Kill those that run."""
        self._wake = None
        await asyncio.gather(*(check.stop() for check in self._checks))

    def findings(self, now_s: float) -> Findings:
        """Their newest answers; starts those that are due."""
        for check in self._checks:
            if self._wake is not None:
                check.begin(self._wake)
        return merge(check.findings(now_s) for check in self._checks)
