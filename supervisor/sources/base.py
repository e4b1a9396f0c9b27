"""Where tasks come from: one small protocol that each source keeps.

A source knows nothing about the lifecycle. It never polls unasked: the daemon asks when the lifecycle allows it. An outcome
goes into an outbox in memory at once; delivery goes on beside the daemon and holds nothing up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from states.ending import Ending
from states.observation import Link
from supervisor.config.schema import Control
from supervisor.sources.api_key import TokenError, token
from supervisor.sources.desired import Order
from supervisor.sources.errors import RequestError

Wake = Callable[[], None]

STATE_KEY: Final = "rae_state"  # in a payload: what the task saved when it was given back
RESUBMIT: Final = "resubmit"  # values of tasks.<type>.on_preempt
FAIL: Final = "fail"


@dataclass(frozen=True, slots=True)
class Claim:
    """A task handed over by the control node. The payload stays in memory and out of every log."""

    id: str
    type: str
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False)
    priority: int = 0
    lost: int = 0  # attempts at it that ended with their node (lost_attempts.py)


class Availability(StrEnum):
    """What heartbeats report: ONLINE only in READY, BUSY in all other states, OFFLINE at the stop."""

    ONLINE = "ONLINE"
    BUSY = "BUSY"
    OFFLINE = "OFFLINE"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The link to the control node, for the Observation and for `status`. Times are seconds of CLOCK_BOOTTIME."""

    link: Link = Link.UP
    since_s: float = 0.0
    reason: str = ""
    next_try_s: float | None = None
    dialect: str = ""
    url: str = ""
    outbox: int = 0  # results and hand-backs not delivered yet
    lost_polls: int = 0  # polls without an answer that could be used: each may have cost the control node a task
    lost_poll_s: float | None = None  # the last of them
    error: str = ""  # the last error of the link, also while it is up again
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
    on_preempt: Mapping[str, str]  # each task type of this node, and how it is given back: RESUBMIT or FAIL
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    wake: bool = False  # a fleet may wake this machine, and have it wake others
    token: str | None = field(default=None, repr=False)  # where `control.token` names none

    async def key(self) -> str | None:
        """The key to send, read now: it may have been corrected.

        Raises:
            RequestError: one is configured and cannot be read.
        """
        try:
            return await asyncio.to_thread(token, self.control, os.environ) or self.token
        except TokenError as error:
            raise RequestError(str(error), sent=False) from None

    def preempted(self, task_type: str) -> str:
        """How a task of this type is given back."""
        return self.on_preempt.get(task_type, RESUBMIT)


class SourceEvents(Protocol):
    """What a source needs of the daemon."""

    def link_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write a line of the kind `link` to the journal. `fields` never hold a payload or a result."""

    def describe(self) -> Mapping[str, Any]:
        """What a fleet may know about this node: `state`, `since`, `blocked_by`; of a pause `paused_by` (`person`,
        `operator`) and `paused_until` (ISO 8601; empty without an end)."""

    async def answer(self, question: str, lines: int) -> Mapping[str, Any]:
        """What a fleet's operator asks this node: one of `QUESTIONS`. `lines`: how many of its log at most. Nothing about its
        person but that they are there. Raises OSError: the log cannot be read."""

    def obey(self, order: Order) -> None:
        """A fleet's operator asks this node to lend less, or takes that back. One that was obeyed before changes nothing."""


class Source(Protocol):
    """One way to get tasks and to give outcomes back."""

    async def start(self, wake: Wake) -> None:
        """Connect, register, send heartbeats, settle what a crash left. Returns at once; the work goes on beside it.

        `wake` is called in the loop's thread when an answer or a change of the link is there.
        """

    async def take_over(self, old: Source) -> None:
        """Before the start: take what `old` has not delivered. `old` is stopped next, and delivers nothing more."""

    async def stop(self, deadline_s: float) -> None:
        """Report OFFLINE and deliver what the outbox holds, for at most `deadline_s` seconds."""

    def ask(self) -> bool:
        """Start one poll. False: a poll is in flight, an answer waits to be taken, or the link is not up."""

    @property
    def asking(self) -> bool:
        """A poll is in flight."""

    def take(self) -> Claim | None:
        """The claim that the last poll brought, once; None when there is none."""

    @property
    def waiting(self) -> Claim | None:
        """The claim that `take` would give, not taken yet."""

    def settle(self, claim: Claim, ending: Ending) -> None:
        """Put the outcome into the outbox: a success, or a failure with a reason that is not empty.

        Raises:
            OSError: the record of the tasks in flight could not be written.
        """

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        """Put the hand-back into the outbox, with the state that the task has saved.

        `on_preempt`: RESUBMIT posts the task again and then fails this one with the new id; FAIL fails it with the stable
        prefix `preempted:`.

        Raises:
            OSError: the record of the tasks in flight could not be written.
        """

    def announce(self, availability: Availability) -> None:
        """What the next heartbeat reports; after a change it comes soon."""

    def resume(self) -> None:
        """Try a link again that was given up."""

    @property
    def status(self) -> LinkStatus:
        """The link as it is."""
