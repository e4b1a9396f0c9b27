"""What every source of a desktop's idle time is, for the session agent: a reading, driven by events, that can be proven.

A source says `active` from its first moment on, until its desktop says that nobody touched it for `QUIET_S`: silence is
no absence. It reads `idle_since_s` from then on, and says `active` at once with the first touch. What cannot be asked
any more raises `Gone`, with the reason in words, and is asked again later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

# Somebody who rests for less than this is active still: shorter, and each pause between two words wakes the machine.
QUIET_S: Final = 2.0
ANSWER_S: Final = 2.0  # a desktop that takes longer hangs
# A compositor's own inhibitors have no names.
NAMELESS: Final = "an idle inhibitor of the compositor"


def boot_s() -> float:
    """Seconds of CLOCK_BOOTTIME: they go on through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Gone(Exception):
    """The source cannot tell (any more); the text is the reason in words."""


class Absent(Gone):
    """Nothing is there any more: a socket that a dead desktop left."""


class Lacking(Gone):
    """A desktop is there and well, and offers nothing that would tell."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What a source says now. `idle_since_s` None: somebody is active. `pid`: whose desktop it is, 0 where not known."""

    source: str
    idle_since_s: float | None = None
    inhibitors: tuple[str, ...] = ()
    pid: int = 0


class IdleSource(Protocol):
    """One way to ask one desktop."""

    @property
    def reading(self) -> Idle | None:
        """What it says; None as long as no probe has proven that it can tell."""
        ...

    async def run(self, changed: Callable[[], None]) -> None:
        """Connect, and watch for as long as it lasts; `changed` is called whenever `reading` is another one.

        Raises:
            Gone: it ended, or never began.
        """
        ...

    async def prove(self) -> None:
        """Ask anew for what it says; `reading` is right afterwards.

        Raises:
            Gone: no answer in `ANSWER_S`.
        """
        ...
