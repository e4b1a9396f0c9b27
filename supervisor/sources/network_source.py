"""What sources over a network have in common (R1, R20, R21): a link that is kept, at most one poll, the one claim that it
brought, a bound on what waits to be delivered, and words for the journal."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from states.observation import Link
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock
from supervisor.sources.base import Availability, Claim, LinkStatus, SourceEvents, SourceSettings, Wake
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import InFlightRecord, InFlightTask
from supervisor.sources.link import RetryingLink

MAX_WAITING: Final = 16  # outcomes that wait in memory, each as large as a result may be; beyond, no more work is asked for


class NetworkSource(ABC):
    """The half of a `Source` that is one whatever the other side speaks.

    The link, the poll and the way back go on side by side in the loop. What one of them meets on the way the link is told
    (`_fail`), and it alone says up, down or lost.
    """

    _pace_s: ClassVar[float] = 0.0  # seconds between two signs of life at least, however much news there is

    def __init__(self, settings: SourceSettings, clock: Clock, events: SourceEvents) -> None:
        self._settings = settings
        self._clock = clock
        self._events = events
        self._wake: Wake = lambda: None
        self._notes = InFlightRecord(settings.state_dir)
        self._link = RetryingLink(
            self._connect_anew,
            self._keep,
            clock=clock,
            retry=settings.retry_on_disconnect,
            changed=self._changed,
            parted=self._part,
        )
        self._availability = Availability.BUSY
        self._trouble: RequestError | None = None  # met by the poll or on the way back, for the link to deal with
        self._nudge = asyncio.Event()  # news, or trouble
        self._alarm = asyncio.Event()  # trouble
        self._slot: Claim | None = None
        self._poll: asyncio.Task[None] | None = None
        self._work: list[asyncio.Task[None]] = []
        self._stopping = False

    # --- the protocol

    def ask(self) -> bool:
        """Start one poll."""
        if not self._may_ask():
            return False
        self._poll = asyncio.create_task(self._ask())
        return True

    @property
    def asking(self) -> bool:
        """A poll is in flight."""
        return self._poll is not None

    def take(self) -> Claim | None:
        """The claim that the last poll brought, once."""
        claim, self._slot = self._slot, None
        return claim

    @property
    def waiting(self) -> Claim | None:
        """The claim that `take` would give."""
        return self._slot

    def announce(self, availability: Availability) -> None:
        """What signs of life say; a change is told soon."""
        if availability is not self._availability and not self._stopping:
            self._availability = availability
            self._nudge.set()

    def resume(self) -> None:
        """Lift a link that was given up; cut short the wait for the next try."""
        self._link.resume()

    @property
    def status(self) -> LinkStatus:
        """The link as it is."""
        link = self._link
        return LinkStatus(
            link=link.link,
            since_s=link.since_s,
            reason=link.reason,
            next_try_s=link.next_try_s,
            dialect=self._dialect,
            url=self._url,
            outbox=self._undelivered,
            error=link.error,
            error_s=link.error_s,
        )

    # --- what differs

    @property
    @abstractmethod
    def _url(self) -> str:
        """The other side, for people: no password."""

    @property
    @abstractmethod
    def _dialect(self) -> str:
        """What is spoken with it."""

    @property
    @abstractmethod
    def _undelivered(self) -> int:
        """Outcomes that wait."""

    @abstractmethod
    async def _connect(self) -> None:
        """Make the link, and tell of this node. Raises RequestError."""

    @abstractmethod
    async def _beat(self) -> None:
        """Give a sign of life. Raises RequestError."""

    @abstractmethod
    async def _part(self) -> None:
        """The link has gone down: clear up."""

    @abstractmethod
    async def _poll_once(self) -> None:
        """Ask for a task and put it into the slot, if there is one. Raises RequestError."""

    # --- the link

    async def _connect_anew(self) -> None:
        self._trouble = None
        self._alarm.clear()
        await self._connect()

    async def _keep(self) -> None:
        """One interval, and a sign of life at its end; sooner when there is news or trouble."""
        pace_s = min(self._pace_s, self._settings.heartbeat_interval_s)
        for event, wait_s in ((self._alarm, pace_s), (self._nudge, self._settings.heartbeat_interval_s - pace_s)):
            await wait_for_event(event, wait_s)
        self._nudge.clear()
        if self._trouble is not None:
            raise self._trouble
        await self._beat()

    def _fail(self, trouble: RequestError) -> None:
        """RequestError met elsewhere: the link is down at once, and its task deals with it."""
        if self._link.link is Link.UP and not self._stopping:
            self._trouble = trouble
            self._link.say(Link.DOWN, trouble.reason)
            self._alarm.set()
            self._nudge.set()

    def _changed(self, link: Link, reason: str) -> None:
        self._event(link.value, reason=reason, url=self._url, dialect=self._dialect)
        self._wake()

    # --- the poll

    def _may_ask(self) -> bool:
        """None is in flight, nothing waits to be taken, and what waits to be delivered does not fill the memory."""
        free = self._poll is None and self._slot is None and self._undelivered < MAX_WAITING
        return free and self._link.link is Link.UP and not self._stopping

    async def _ask(self) -> None:
        try:
            await self._poll_once()
        except RequestError as trouble:
            self._fail(trouble)
        except Exception as error:  # noqa: BLE001  no fault of ours may end the poll in silence
            self._fail(RequestError(f"the poll could not be made ({type(error).__name__})"))
        finally:
            self._poll = None
            self._wake()

    def _no_longer_waits(self, task_id: str) -> None:
        if self._slot is not None and self._slot.id == task_id:
            self._slot = None

    # --- the note and the journal

    async def _left_noted(self) -> tuple[InFlightTask, ...]:
        """The tasks that were in flight when the last life of the node ended."""
        left, trouble = await self._notes.load()
        if trouble:
            self._event("note-unreadable", reason=trouble)
        return left

    def _event(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(Exception):  # a journal that fails must not end the link
            self._events.link_event(event, fields)
