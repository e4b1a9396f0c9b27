"""What every sensor is, and the types that it reports.

A sensor never blocks the loop: `latest` is cheap and answers from what is known, with the time it was known at. What
can block briefly runs in a worker thread with a deadline, what can hang in the kernel in a helper process. An error, a
hang, a missing tool is a report with `error` set, never an exception out of `latest` (R12).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from states.observation import NEVER

Wake = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Presence:
    """What one kind of sign says about the person. Times are seconds of CLOCK_BOOTTIME.

    `error` not empty: this source cannot tell, which blocks. `present` not empty: somebody is there right now, by this
    source, in words ("graphical session 3 of anna active on seat0"); the last sign is then the present moment.
    Otherwise `last_sign_at_s` is the last sign known (NEVER: none, as far as this source can see) and `sign` says what
    it was, in the form "user active on pts/3".
    """

    source: str
    read_at_s: float
    last_sign_at_s: float = NEVER
    sign: str = ""
    present: str = ""
    error: str = ""


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
