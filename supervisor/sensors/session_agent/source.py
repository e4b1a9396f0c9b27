"""What every source of a desktop's idle time is, for the session agent: a reading that events update and `prove` confirms.

A source says `active` from its first moment until its desktop reports that nobody has touched it for `QUIET_S`: silence is
no absence. Then it says since when the desktop is idle, until the first touch. A source that cannot be asked any more
raises `Gone`, with the reason, and is tried again later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# A shorter rest is still activity. With a shorter limit, each pause between two words would wake the machine.
QUIET_S: Final = 2.0
ANSWER_S: Final = 2.0  # a desktop that takes longer hangs
NAMELESS: Final = "an idle inhibitor of the compositor"  # a compositor does not say whose it is


def boot_s() -> float:
    """Seconds of CLOCK_BOOTTIME: it also counts suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Gone(Exception):
    """The source has no reading, or not any more; the text is the reason."""


class Absent(Gone):
    """There is no desktop: only a socket that a dead one left."""


class Hung(Gone):
    """The desktop is there, and does not answer."""


class Lacking(Gone):
    """The desktop works, and offers no way to ask for idle times."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What a source says now. `idle_since_s` None: somebody is active. `pid`: whose desktop it is, 0 where not known."""

    source: str
    idle_since_s: float | None = None
    inhibitors: tuple[str, ...] = ()
    pid: int = 0


class IdleSource:
    """One way to ask one desktop. `pid`: the process whose desktop it is, 0 where not known."""

    pid = 0

    @property
    def reading(self) -> Idle | None:
        """What it says; None: no probe has succeeded yet."""
        raise NotImplementedError

    async def run(self, changed: Callable[[], None]) -> None:
        """Connect, and watch until cancelled; `changed` is called when `reading` changes.

        Raises:
            Gone: it ended, or never began.
        """
        raise NotImplementedError

    async def prove(self) -> None:
        """Ask the desktop again; `reading` is right afterwards.

        Raises:
            Gone: no answer in `ANSWER_S`.
        """
        raise NotImplementedError
