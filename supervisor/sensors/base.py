"""What every sensor is, and the types that it reports.

A sensor never blocks the loop: `latest` is cheap and answers from what is known, with the time it was known at. What
can block briefly runs in a worker thread with a deadline, what can hang in the kernel in a helper process. An error, a
hang, a missing tool is a report with `error` set, never an exception out of `latest` (R12).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from states.observation import NEVER

Wake = Callable[[], None]


class Quality(StrEnum):
    """How a reading was come by: told at the moment it happened; read when somebody looked; concluded from something else
    (a hint, the lack of a proof); or there is none."""

    EVENT = "event"
    POLLED = "polled"
    INFERRED = "inferred"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Away:
    """A source's word that nobody has been at one desktop since `since_s` (seconds of CLOCK_BOOTTIME), in words: "nobody at
    session 3 of anna". `denied`: what another source (`denied_by`) says of the same desktop, of the moment `denied_at_s`."""

    source: str
    about: str
    since_s: float
    denied_by: str = ""
    denied: str = ""
    denied_at_s: float = NEVER


@dataclass(frozen=True, slots=True)
class Presence:
    """What one kind of sign says about the person. Times are seconds of CLOCK_BOOTTIME.

    `error` not empty: this source cannot tell, which blocks. `present` not empty: somebody is there right now, by this
    source, in words ("graphical session 3 of anna active on seat0"); the last sign is then the present moment.
    Otherwise `last_sign_at_s` is the last sign known (NEVER: none, as far as this source can see) and `sign` says what
    it was, in the form "user active on pts/3".

    `hands`: what it tells is somebody's touch, wherever that was; it may contradict what others say (`away`) of a desktop.
    """

    source: str
    read_at_s: float
    last_sign_at_s: float = NEVER
    sign: str = ""
    present: str = ""
    error: str = ""
    quality: Quality = Quality.EVENT
    hands: bool = False
    away: tuple[Away, ...] = ()


class OwnTask(Protocol):
    """The node's own task. Its processes are no sign of the person, and its CPU time is no load of others."""

    def pids(self) -> frozenset[int]:
        """The task's processes now; empty without one."""
        ...

    def cpu_s(self) -> float:
        """The CPU seconds that the task has used so far; 0 without one."""
        ...


class NoOwnTask:
    """For a look without a daemon."""

    def pids(self) -> frozenset[int]:
        """See `OwnTask`."""
        return frozenset()

    def cpu_s(self) -> float:
        """See `OwnTask`."""
        return 0.0


class SleepLock(Protocol):
    """The lock that keeps the machine awake while a task runs."""

    @property
    def lost(self) -> str:
        """Why the lock that should be held is gone; empty when all is well."""
        ...


class PresenceSensor(Protocol):
    """A kind of sign of the person."""

    name: str

    async def start(self, wake: Wake) -> None:
        """Begin to watch; `wake` is called (in the loop's thread) whenever something may have changed. Returns once the
        first report is there or known to be unavailable, within a second or two."""
        ...

    async def stop(self) -> None:
        """Let go of everything."""
        ...

    def latest(self, now_s: float) -> Presence:
        """What is known now; cheap, never raises."""
        ...
