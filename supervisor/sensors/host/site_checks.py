"""A site's own checks (host.checks): commands that must all exit 0. They run in the background, and nobody waits for them.

Each runs at most every `host.check_interval_sec`, when a tick asks and its last answer is that old; there is no timer. A check
has no terminal or input, and its output is discarded; it is killed when it takes too long. Until the first answer, and when the
newest is too old, the result is unknown. A check that cannot be killed is not started again.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import Final

from states.observation import NEVER
from supervisor.linux.child import Child
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
        self._child: Child | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started_at_s = self._answered_at_s = NEVER
        self._found = self._unknown("has not answered yet")
        self._wake: Wake = lambda: None

    def begin(self, wake: Wake) -> None:
        """Start it, if it is due."""
        now_s = self._clock.now_s()
        self._wake = wake
        if self._child is not None or 0 <= now_s - self._started_at_s < self._interval_s:
            return
        self._started_at_s = now_s
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        null = subprocess.DEVNULL
        try:
            self._child = Child(self._argv, self._ended, stdin=null, stdout=null, stderr=null, env=environment)
        except (OSError, ValueError) as error:
            self._answer(self._unknown(f"cannot be started: {error_text(error)}"))
            return
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._late)

    def findings(self, now_s: float) -> Findings:
        """The newest answer, if it is not too old."""
        max_age_s = self._interval_s + self._timeout_s + max(self._interval_s, 30.0)
        if not self._found.unknown and not 0 <= now_s - self._answered_at_s <= max_age_s:
            return self._unknown("has not answered for too long")
        return self._found

    async def stop(self) -> None:
        """Kill it, and wait a moment for its end."""
        child, self._child = self._child, None
        self._cancel_timer()
        if child is not None:
            child.kill()
            await child.wait(STOP_S)
            child.abandon()

    def _ended(self, code: int) -> None:
        self._child = None
        if not self._cancel_timer():
            return  # it was answered when its time was over
        if code < 0:
            self._answer(self._unknown(f"died by signal {-code}"))
        else:
            self._answer(FIT if code == 0 else Findings(unfit=(self._text("is against it"),)))

    def _late(self) -> None:
        self._timer = None
        if self._child is not None:
            self._child.kill()
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

    def _cancel_timer(self) -> bool:
        """Cancel the timer; returns whether it was running."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None


class SiteChecks:
    def __init__(self, checks: Sequence[Sequence[str]], clock: Clock, interval_s: float, timeout_s: float = TIMEOUT_S) -> None:
        self._checks = [_SiteCheck(argv, clock, interval_s, timeout_s) for argv in checks]
        self._wake: Wake | None = None

    async def start(self, wake: Wake) -> None:
        """Run them all for the first time, without waiting for any; their answers wake."""
        self._wake = wake
        for check in self._checks:
            check.begin(wake)

    async def stop(self) -> None:
        self._wake = None
        await asyncio.gather(*(check.stop() for check in self._checks))

    def findings(self, now_s: float) -> Findings:
        """Their newest answers; starts those that are due."""
        for check in self._checks:
            if self._wake is not None:
                check.begin(self._wake)
        return merge(check.findings(now_s) for check in self._checks)
