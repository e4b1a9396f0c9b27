"""What lasts from tick to tick. Frozen; `Lifecycle.commit` makes the next one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from states.effects import Effect

# A hold that began then is over: it is long ago, and a number that JSON can hold.
USED_UP: Final = -1e12


class State(StrEnum):
    """The five states."""

    DISABLED = "DISABLED"
    IDLE_WAIT = "IDLE_WAIT"
    READY = "READY"
    RUNNING = "RUNNING"
    COOLDOWN = "COOLDOWN"


@dataclass(frozen=True, slots=True)
class Memory:
    """Times are seconds of CLOCK_BOOTTIME.

    The cooldown is remembered by the moment RUNNING was left, not by a state's age, so a trip through DISABLED does
    not skip it. `hold_from_s` is when the task was frozen because of a sign that may be a false alarm, USED_UP
    where it could not be. `owed` are effects that failed, in the order in which they are tried again.
    """

    state: State = State.DISABLED
    since_s: float = 0.0
    running_since_s: float | None = None
    started_at_s: float | None = None
    hold_from_s: float | None = None
    cooldown_from_s: float | None = None
    owed: tuple[Effect, ...] = ()
    last_row: str = ""
    veto: str = ""
