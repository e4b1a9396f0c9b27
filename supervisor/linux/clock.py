"""The clock that everything gets: CLOCK_BOOTTIME counts suspend and ignores wall-clock jumps."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time; tests give another one."""

    def now_s(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch; for time stamps, never for decisions."""
        ...


class SystemClock:
    def now_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_s(self) -> float:
        return time.time()


def suspended_s() -> float:
    """Seconds that the machine has been suspended since boot, announced or not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def iso(wall_s: float) -> str:
    """A local time with its offset, to the second (ISO 8601)."""
    local = time.localtime(wall_s)
    offset = time.strftime("%z", local)
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + f"{offset[:3]}:{offset[3:]}"
