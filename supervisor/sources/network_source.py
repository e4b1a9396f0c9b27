"""What all sources over a network have in common: a link, at most one poll, the claim that it brought, an outbox."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, ClassVar, Final

from states.ending import Ending, handed_back
from states.observation import Link
from supervisor.linux.bounded import end
from supervisor.linux.clock import Clock
from supervisor.sources.base import Availability, Claim, LinkStatus, Source, SourceEvents, SourceSettings, Wake
from supervisor.sources.errors import RequestError, own_faults
from supervisor.sources.events import EventLog
from supervisor.sources.in_flight import InFlightRecord, InFlightTask
from supervisor.sources.link import RetryingLink
from supervisor.sources.outbox import Outbox

NOTES_S: Final = 1.0  # the most that the last write of the record may take
MAX_WAITING: Final = 16  # outcomes that wait in memory, each as large as a result may be; with so many, the node does not ask


class NetworkSource(ABC):
    """The half of a `Source` that does not depend on the protocol.

    The link, the poll and the outbox run side by side. An error that the poll or the outbox meets goes to the link, and the
    link alone decides whether it is up, down or lost.
    """

    _pace_s: ClassVar[float] = 0.0  # at least so long between two heartbeats, however much news there is
    _undelivered_reason: ClassVar[str]
    _outbox: Outbox[Any]

    def __init__(self, settings: SourceSettings, clock: Clock, events: SourceEvents) -> None:
        self._settings = settings
        self._clock = clock
        self._log = EventLog(events.link_event)
        self._wake: Wake = lambda: None
        self._record = InFlightRecord(settings.state_dir)
        self._link = RetryingLink(
            self._connect,
            self._keep,
            self._close,
            clock=clock,
            retry=settings.retry_on_disconnect,
            changed=self._changed,
        )
        self._availability = Availability.BUSY
        self._claim: Claim | None = None
        self._poll: asyncio.Task[None] | None = None
        self._work: list[asyncio.Task[None]] = []
        self._lost_polls = 0
        self._lost_poll_s: float | None = None

    # --- the protocol

    async def start(self, wake: Wake) -> None:
        self._wake = wake
        left, problem = await self._record.load()
        if problem:
            self._log("note-unreadable", reason=problem)
        for task in left:
            if task.id not in self._outbox:  # taken over from another source
                await self._recover(task)
        jobs = (self._link.run(), self._outbox.run(wake), *self._jobs())
        self._work = [asyncio.create_task(job) for job in jobs]

    @abstractmethod
    async def take_over(self, old: Source) -> None: ...

    async def stop(self, deadline_s: float) -> None:
        """See Source. A claim not taken is given back. Takes `deadline_s` at most."""
        self._link.stopping = True
        self._availability = Availability.OFFLINE
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._finish(deadline_s)
        finally:
            await self._end()
            await self._close_notes()
            for item in self._outbox:
                self._log("undelivered", item, reason=self._undelivered_reason)
            self._link.stopped()

    def ask(self) -> bool:
        if not self._may_ask():
            return False
        self._poll = asyncio.create_task(self._ask())
        return True

    @property
    def asking(self) -> bool:
        return self._poll is not None

    def take(self) -> Claim | None:
        claim, self._claim = self._claim, None
        return claim

    @property
    def waiting(self) -> Claim | None:
        return self._claim

    def announce(self, availability: Availability) -> None:
        if availability is not self._availability and not self._link.stopping:
            self._availability = availability
            self._link.hurry()

    def resume(self) -> None:
        """See Source; a wait for the next try is cut short as well."""
        self._link.resume()

    @property
    def status(self) -> LinkStatus:
        status = self._link.status
        return replace(
            status, dialect=self._dialect, url=self._url, outbox=len(self._outbox),
            lost_polls=self._lost_polls, lost_poll_s=self._lost_poll_s,
        )  # fmt: skip

    async def _close_notes(self) -> None:
        """What is not delivered was over before the node ended."""
        try:
            async with asyncio.timeout(NOTES_S):
                await self._record.close()
        except OSError as error:  # TimeoutError too
            self._log("note-not-kept", reason=str(error))

    # --- what differs

    @property
    @abstractmethod
    def _url(self) -> str: ...

    @property
    @abstractmethod
    def _dialect(self) -> str: ...

    @abstractmethod
    async def _recover(self, task: InFlightTask) -> None:
        """Begin to settle a task that a crash left."""

    def _jobs(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What runs beside the link and the outbox."""
        return ()

    @abstractmethod
    async def _connect(self) -> None:
        """Make the link, and report this node. Raises RequestError."""

    @abstractmethod
    async def _beat(self) -> None:
        """Send a heartbeat. Raises RequestError."""

    async def _close(self) -> None:  # noqa: B027  not each link needs it
        """Clean up after the link has gone down."""

    @abstractmethod
    async def _poll_once(self) -> None:
        """Ask for a task; if there is one, keep it in `_claim`. Raises RequestError."""

    @abstractmethod
    async def _finish(self, deadline_s: float) -> None:
        """The node stops: report OFFLINE, give back, deliver. Cancelled after `deadline_s`."""

    async def _end(self) -> None:
        """The node has stopped: end all that runs."""
        await end(*self._work, *([self._poll] if self._poll is not None else []))
        await self._close()

    # --- the link

    async def _keep(self) -> None:
        interval_s = self._settings.heartbeat_interval_s
        await self._link.rest(interval_s, min(self._pace_s, interval_s))
        await self._beat()

    def _changed(self, link: Link, reason: str) -> None:
        self._log(link.value, reason=reason, url=self._url, dialect=self._dialect)
        self._wake()

    # --- the poll

    def _may_ask(self) -> bool:
        """No poll is in flight, no claim waits, and the outbox does not fill the memory."""
        free = self._poll is None and self._claim is None and len(self._outbox) < MAX_WAITING
        return free and self._link.up and not self._link.stopping

    def _poll_lost(self, reason: str) -> None:
        """Say that a poll was lost: the other side may have handed out a task with its answer."""
        self._lost_polls += 1
        self._lost_poll_s = self._clock.now_s()
        self._log("poll-lost", reason=f"{reason}; a task may have been handed out with that answer")

    async def _ask(self) -> None:
        try:
            with own_faults("the poll could not be made"):
                await self._poll_once()
        except RequestError as error:
            self._link.fail(error)
        finally:
            self._poll = None
            self._wake()

    async def _give_back_untaken(self, wait_s: float | None = None, on_preempt: str | None = None) -> None:
        """Read the answer of a poll that is on its way, and give back a claim that was not taken."""
        if self._poll is not None:
            await asyncio.wait([self._poll], timeout=wait_s)
        if (claim := self._claim) is not None:
            self.hand_back(claim, handed_back("the node stopped"), on_preempt or self._settings.preempted(claim.type))

    def _no_longer_waits(self, task_id: str) -> None:
        if self._claim is not None and self._claim.id == task_id:
            self._claim = None

    @abstractmethod
    def settle(self, claim: Claim, ending: Ending) -> None: ...

    @abstractmethod
    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None: ...
