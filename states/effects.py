"""The effects by name, and their order for each way out of RUNNING.

Every way out stops the whole process tree, settles or hands back, wipes, and releases, in that order, as far as there is
something to stop, settle or wipe. An effect of OWED that failed is owed: it comes first in the next tick's list.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from states.observation import TaskPhase


class Effect(StrEnum):
    """What the performer can be asked to do."""

    INHIBIT = "inhibit"
    START = "start"
    FREEZE = "freeze"
    THAW = "thaw"
    STOP = "stop"
    SETTLE = "settle"
    HAND_BACK = "hand_back"
    WIPE = "wipe"
    RELEASE = "release"


# The order in which owed effects are tried again.
OWED: Final = (Effect.STOP, Effect.SETTLE, Effect.HAND_BACK, Effect.WIPE, Effect.RELEASE)

# An entry effect that fails vetoes its row; the rest of the list is then replaced.
VETOING: Final = frozenset({Effect.INHIBIT})
AFTER_VETO: Final = (Effect.HAND_BACK,)

ENTER: Final = (Effect.INHIBIT, Effect.START)
NEXT: Final = (Effect.START,)
# At a sign that may be a false alarm the task is frozen; it goes on if it was one (work.hold_sec).
HOLD: Final = (Effect.FREEZE,)
GO_ON: Final = (Effect.THAW,)
SETTLED: Final = (Effect.SETTLE, Effect.WIPE)

LEAVE: Final[dict[TaskPhase, tuple[Effect, ...]]] = {
    TaskPhase.NONE: (Effect.RELEASE,),
    TaskPhase.ASKED: (Effect.RELEASE,),
    TaskPhase.CLAIMED: (Effect.HAND_BACK, Effect.RELEASE),
    TaskPhase.RUNNING: (Effect.STOP, Effect.HAND_BACK, Effect.WIPE, Effect.RELEASE),
    TaskPhase.ENDED: (Effect.SETTLE, Effect.WIPE, Effect.RELEASE),
    TaskPhase.FAILED: (Effect.SETTLE, Effect.WIPE, Effect.RELEASE),
}
# A task that took too long has failed by itself: it is settled, not handed back to run elsewhere.
LEAVE_TIMED_OUT: Final = (Effect.STOP, Effect.SETTLE, Effect.WIPE, Effect.RELEASE)

# Outside RUNNING nothing of a task may stay: a claim goes back, a process is stopped.
ELSEWHERE: Final[dict[TaskPhase, tuple[Effect, ...]]] = {
    TaskPhase.CLAIMED: (Effect.HAND_BACK,),
    TaskPhase.RUNNING: (Effect.STOP, Effect.HAND_BACK, Effect.WIPE),
}
