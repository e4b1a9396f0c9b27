"""What every sensor is, and the types that it reports.

A sensor never blocks the loop: `latest` is cheap, and answers with what is known and when it was read. What may block
briefly runs in a worker thread with a deadline. What may hang in the kernel runs in a helper process. An error, a hang or
a missing tool is a report with `error`, never an exception out of `latest`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from states.formatting import elapsed
from states.observation import NEVER

Wake = Callable[[], None]
OWN_LOCK: Final = "rae-node"  # the holder of the node's locks in every list
RESUME_SIGN: Final = "the machine woke up from sleep"


class Quality(StrEnum):
    """How a reading was made: by an event, at that moment; by a look; by a conclusion from something else, such as a hint or
    a missing proof; assumed, because nothing was seen before that moment; or not at all."""

    EVENT = "event"
    POLLED = "polled"
    INFERRED = "inferred"
    ASSUMED = "assumed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Touch:
    """A source's sign that counts against the absence from a desktop. Time in seconds of CLOCK_BOOTTIME."""

    at_s: float
    source: str
    sign: str


@dataclass(frozen=True, slots=True)
class Away:
    """A source says that nobody has been at one desktop since `since_s` (seconds of CLOCK_BOOTTIME). `about`: "nobody at
    session 3 of anna". `denied`: another source's sign of the same desktop."""

    source: str
    about: str
    since_s: float
    denied: Touch | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """What one source says about the person. Times are seconds of CLOCK_BOOTTIME.

    last_sign_at_s: NEVER: this source has seen no sign. `sign` says what it was: "user active on pts/3".
    present: if not empty, somebody is there now: "graphical session 3 of anna active on seat0".
    error: if not empty, the person is unknown to this source, which blocks.
    hands: somebody touched something. This may contradict what others say (`away`) of a desktop.
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


def inhibitor_line(blocked: str, held_s: float, counts: bool) -> str:
    """For people: a program that keeps the screen on (`blocked`), for how long, and the setting that excepts it."""
    counted = "" if counts else "not counted: "
    return f"{blocked}, for {elapsed(max(0.0, held_s))} at least ({counted}presence.ignore_inhibitors)"


class PresenceSensor(ABC):
    """One source of signs of the person. A new one is a subclass in its own file, and a line in `sensor_set.py`.

    name: the `source` of its reports, as status, journal and doctor show it.
    """

    name: str

    async def start(self, wake: Wake) -> None:  # noqa: B027 - not every source has something to open
        """Begin to watch. `wake` is called in the loop's thread when something may have changed. Returns when the first
        report is there or known to be unavailable, within two seconds."""

    async def stop(self) -> None:  # noqa: B027
        """Stop watching and close everything."""

    @abstractmethod
    def latest(self, now_s: float) -> Presence:
        """What is known now; cheap, never raises."""

    def details(self) -> dict[str, list[str]]:
        """What the source looks at, one line each, by heading. Each heading is a line of `doctor`."""
        return {}


class OwnTask(Protocol):
    """The node's own task. Its processes are no sign of the person, and its CPU time is no load of others."""

    def pids(self) -> frozenset[int]:
        """The task's processes now; empty without one."""

    def cpu_s(self) -> float:
        """The CPU seconds that the task has used so far; 0 without one."""


class SleepLock(Protocol):
    """The lock that keeps the machine awake while a task runs."""

    @property
    def lost(self) -> str:
        """Why the lock that should be held is gone; empty when all is well."""
