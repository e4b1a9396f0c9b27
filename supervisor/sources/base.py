"""Where tasks come from: one small protocol that every source keeps.

A source knows nothing of the lifecycle. It never starts a poll by itself: the daemon asks, when the mind says so. What
is settled or handed back goes into the outbox in memory at once; delivery is the link's business and holds nothing up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from states.ending import Ending
from states.observation import Link
from supervisor.config.schema import Control

Wake = Callable[[], None]

STATE_KEY: Final = "rae_state"


@dataclass(frozen=True, slots=True)
class Claim:
    """A task handed over by the control node. The payload stays in memory and out of every log (R6)."""

    id: str
    type: str
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False)
    priority: int = 0


def with_saved_state(claim: Claim, ending: Ending) -> Claim:
    """The claim as it goes back: its payload holds the place that the task has saved, under `rae_state`."""
    if ending.saved_state is None:
        return claim
    return replace(claim, payload={**claim.payload, STATE_KEY: ending.saved_state})


class Availability(StrEnum):
    """What heartbeats say: ONLINE only when READY, BUSY otherwise while alive, OFFLINE on the way out (R20)."""

    ONLINE = "ONLINE"
    BUSY = "BUSY"
    OFFLINE = "OFFLINE"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The way to the control node, for the Observation and for `status`. Times are seconds of CLOCK_BOOTTIME."""

    link: Link = Link.UP
    since_s: float = 0.0
    reason: str = ""
    next_try_s: float | None = None
    dialect: str = ""
    url: str = ""
    outbox: int = 0  # results and hand-backs not delivered yet
    error: str = ""  # the last trouble on the way, also while the link is up again
    error_s: float | None = None


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What each kind of source is made from."""

    control: Control
    node_id: str
    state_dir: Path  # of the record of the tasks in flight
    heartbeat_interval_s: float
    poll_interval_s: float
    retry_on_disconnect: bool  # False: the first failure of the link is final until `resume`
    on_preempt: Mapping[str, str]  # each task type of this node, and how it is given back: "resubmit" or "fail"
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False)


class SourceEvents(Protocol):
    """What a source needs of the daemon."""

    def link_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write a line of the kind `link` to the journal. `fields` never hold a payload or a result."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What a fleet may know about this node: `state`, `since`, `blocked_by`."""
        ...


class Source(Protocol):
    """One way to get tasks and to give outcomes back."""

    async def start(self, wake: Wake) -> None:
        """Begin: find the server's dialect, register, heartbeat, settle the note of a crash. Returns at once; the work
        goes on in tasks of its own. `wake` is called in the loop's thread when an answer, or a change of the link, is there."""
        ...

    async def stop(self, deadline_s: float) -> None:
        """Say OFFLINE and deliver what the outbox holds, for at most `deadline_s` seconds."""
        ...

    def ask(self) -> bool:
        """Start one poll. False: one is in flight, an answer waits to be taken, or the link is not up."""
        ...

    @property
    def crash_note(self) -> bool:
        """A task was in flight when the last life of the node ended, and is not settled yet."""
        ...

    @property
    def asking(self) -> bool:
        """A poll is in flight."""
        ...

    def take(self) -> Claim | None:
        """The claim that the last poll brought, once; None when there is none."""
        ...

    @property
    def waiting(self) -> Claim | None:
        """The claim that `take` would give, not taken yet."""
        ...

    def settle(self, claim: Claim, ending: Ending) -> None:
        """Put the ending of a task that succeeded or failed into the outbox.

        Raises:
            OSError: the note of the task in flight could not be kept.
        """
        ...

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        """Put a task that goes back into the outbox, with the place that it has saved (`with_saved_state`).

        `on_preempt`: "resubmit" posts the task anew and then fails this one with the new id; "fail" fails it with the
        stable prefix `preempted:`.

        Raises:
            OSError: the note of the task in flight could not be kept.
        """
        ...

    def announce(self, availability: Availability) -> None:
        """What the next heartbeat says; a change is told soon, not at the next interval."""
        ...

    def resume(self) -> None:
        """Lift a link that was given up (R21)."""
        ...

    @property
    def status(self) -> LinkStatus:
        """The link as it is."""
        ...
