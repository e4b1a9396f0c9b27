"""The control node over HTTP as a source of tasks: the link, the poll, the one claim, and the way back (R1, R2, R20, R21).

Three things go on side by side, all in the loop: the link (find the dialect, register, heartbeat, back off), at most one
poll, and the outbox's worker. What one of them meets on the way the link is told, and it alone says up, down or lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from states.observation import Link
from supervisor.clock import Clock
from supervisor.settings import Control
from supervisor.sources.base import Availability, Claim, LinkStatus, Wake
from supervisor.sources.link import STOPPED, KeptLink
from supervisor.sources.note import Entry, Notes
from supervisor.sources.outbox import Item, Outbox
from supervisor.sources.rae_api import BAD_GATEWAY, NoSuchPath, NoSuchThing, RaeApi, TooLarge
from supervisor.sources.transport import Transport, Trouble

EVENT_KIND: Final = "link"  # the journal's kind; the fields hold `event` and what belongs to it
MAX_TYPE_CHARS: Final = 200
OVER: Final = ("COMPLETED", "FAILED")


class RaeHttp:
    """A `Source`. `on_event(kind, fields)` is for the journal: link changes, deliveries, what was lost; never a payload.

    `capabilities` is what register tells of this machine, `on_preempt` how a type of task is given back ("resubmit" or
    "fail"). With `retry_on_disconnect` False the first failure gives the link up until `resume` (R21).
    """

    def __init__(
        self,
        settings: Control,
        *,
        node_id: str,
        clock: Clock,
        state_dir: Path,
        heartbeat_interval_s: float,
        retry_on_disconnect: bool,
        capabilities: Mapping[str, Any],
        on_event: Callable[[str, dict[str, Any]], None],
        token: str | None,
        on_preempt: Callable[[str], str] = lambda kind: "resubmit",
    ) -> None:
        self._heartbeat_interval_s = heartbeat_interval_s
        self._on_event = on_event
        self._on_preempt = on_preempt
        self._wake: Wake = lambda: None
        self._transport = Transport(settings, clock, token)
        self._api = RaeApi(self._transport, settings, node_id=node_id, token=token, capabilities=capabilities)
        self._notes = Notes(state_dir)
        self._kept = KeptLink(
            self._connect_anew,
            self._keep,
            clock=clock,
            backoff_max_s=settings.backoff_max_sec,
            retry=retry_on_disconnect,
            changed=self._changed,
            parted=self._part,
        )
        self._outbox = Outbox(
            self._api,
            self._notes,
            backoff_max_s=settings.backoff_max_sec,
            on_preempt=on_preempt,
            event=self._event,
            on_trouble=self._fail,
            blame=self._kept.blame,
            sound=self._sound,
            wake=lambda: self._wake(),
        )
        self._availability = Availability.BUSY
        self._trouble: Trouble | None = None  # met by the poll or the outbox, for the link to deal with
        self._poll_lost = False  # the server may have handed out a task that we do not know of
        self._note_trouble = False
        self._nudge = asyncio.Event()
        self._connecting = asyncio.Lock()
        self._slot: Claim | None = None
        self._poll: asyncio.Task[None] | None = None
        self._work: list[asyncio.Task[None]] = []
        self._stopping = False

    # --- the protocol

    async def start(self, wake: Wake) -> None:
        """Begin; the work goes on in tasks of its own."""
        self._wake = wake
        left, trouble = await self._notes.load()
        if trouble:
            self._event("note-unreadable", reason=trouble)
        for entry in left:
            self._event("note-found", task=entry.id, type=entry.type, reason="the node stopped while it had this task")
            self._outbox.put(Item.left(entry))
        self._work = [asyncio.create_task(self._kept.run()), asyncio.create_task(self._outbox.run())]

    async def stop(self, deadline_s: float) -> None:
        """Say OFFLINE and deliver what the outbox holds; a claim not taken is given back. Takes `deadline_s` at most."""
        self._stopping = True
        self._availability = Availability.OFFLINE
        self._transport.lift()
        try:
            async with asyncio.timeout(deadline_s):
                if self._work:
                    await self._end(self._work[0])
                    self._outbox.open()
                    await asyncio.gather(self._give_back_unasked(deadline_s / 2), self._say_offline())
                    if self._api.compute_id or not self.crash_note:  # a left task needs a server that was reached
                        await self._outbox.last_chance()
        except TimeoutError:
            pass
        finally:
            if self._poll is not None:
                await self._end(self._poll)
            for task in self._work:
                await self._end(task)
            for task_id in self._outbox.ids:
                self._event("undelivered", task=task_id, reason="the node stopped first; settled at its next start")
            await self._transport.close()
            self._kept.say(Link.DOWN, STOPPED)

    def ask(self) -> bool:
        """Start one poll; it is never repeated by itself, for a lost answer may have been a task. After a lost one,
        what is known must be settled first (see `_connect`)."""
        ready = self._kept.link is Link.UP and not self._stopping and not self.crash_note
        ready = ready and not (self._poll_lost and self._notes)
        if not ready or self._poll is not None or self._slot is not None:
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

    def settle(self, claim: Claim, result: Mapping[str, Any], error: str | None) -> None:
        """Put the outcome into the outbox."""
        self._put(Item.settled(claim, result, error))

    def hand_back(self, claim: Claim, reason: str, on_preempt: str) -> None:
        """Put the giving back into the outbox; a claim not taken yet no longer waits."""
        self._put(Item.handed_back(claim, reason, on_preempt))

    def announce(self, availability: Availability) -> None:
        """What heartbeats say; a change is told at once."""
        if availability is not self._availability and not self._stopping:
            self._availability = availability
            self._nudge.set()

    def resume(self) -> None:
        """Lift a link that was given up; cut short the wait for the next try."""
        self._transport.lift()
        self._kept.resume()

    @property
    def status(self) -> LinkStatus:
        """The link as it is."""
        link = self._kept
        return LinkStatus(
            link=link.link,
            since_s=link.since_s,
            reason=link.reason,
            next_try_s=link.next_try_s,
            dialect=self._api.dialect,
            url=self._transport.url,
            outbox=len(self._outbox),
            error=link.error,
            error_s=link.error_s,
        )

    @property
    def crash_note(self) -> bool:
        """A task that a crash left is not settled yet; nothing is asked for meanwhile."""
        return self._outbox.recovering

    # --- the link

    async def _connect_anew(self) -> None:
        self._trouble = None
        await self._connect()

    async def _keep(self) -> None:
        """One interval, and the heartbeat at its end; sooner when there is news or trouble."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._heartbeat_interval_s):
                await self._nudge.wait()
        self._nudge.clear()
        if self._trouble is not None:
            raise self._trouble
        try:
            await self._api.heartbeat(self._availability)
        except (NoSuchThing, NoSuchPath):
            await self._connect()

    async def _connect(self) -> None:
        """Find the dialect if need be, register, and tell the truth: register has called us ONLINE.

        After a lost poll it is a new life of the node that registers, once every task that the old one knew of is settled:
        a server that looks at lives takes back what else it handed to the old one.
        """
        async with self._connecting:
            if self._poll_lost and not self._notes:
                self._api.new_life()
                self._poll_lost = False
            try:
                await self._api.register()
            except NoSuchPath:
                await self._api.register()  # the dialect is looked for again, unless it is given
            await self._api.heartbeat(self._availability)

    async def _part(self) -> None:
        """No connection outlives its request: nothing to clear up."""

    def _changed(self, link: Link, reason: str) -> None:
        if link is Link.UP:
            self._outbox.registered()
        elif link is Link.LOST:
            self._outbox.close()
        self._event(link.value, reason=reason, url=self._transport.url, dialect=self._api.dialect)
        self._wake()

    def _fail(self, trouble: Trouble) -> None:
        """The poll or the outbox met trouble: the link is down at once, and its task deals with it."""
        if self._kept.link is Link.UP and not self._stopping:
            self._trouble = trouble
            self._kept.say(Link.DOWN, trouble.reason)
            self._nudge.set()

    async def _sound(self) -> bool:
        """Whether the server takes a heartbeat right now."""
        try:
            await self._api.heartbeat(self._availability)
        except Trouble:
            return False
        return True

    # --- the poll

    async def _ask(self) -> None:
        try:
            await self._poll_once()
        except Trouble as trouble:
            self._fail(trouble)
        except Exception as error:  # noqa: BLE001  a poll that fails by a fault of ours is trouble too
            self._fail(Trouble(f"the poll could not be made ({type(error).__name__})"))
        finally:
            self._poll = None
            self._wake()

    async def _poll_once(self) -> None:
        if self._note_trouble and not await self._can_note():
            return
        if self._poll_lost:  # the link was made anew while a task was not settled yet
            await self._connect()
        try:
            await self._fetch()
        except (NoSuchThing, NoSuchPath):  # nothing was handed out: it is safe to ask again, once
            await self._connect()
            await self._fetch()
        self._kept.proven = True

    async def _fetch(self) -> None:
        try:
            raw = await self._api.poll()
        except TooLarge as large:  # what is known of it is enough to fail it
            await self._accept({"id": large.task_id}, f"it is larger than this node reads: {large.reason}")
        except Trouble as trouble:
            if trouble.sent and (trouble.status is None or trouble.status >= BAD_GATEWAY):
                self._poll_lost = True
                self._event("poll-lost", reason=f"{trouble.reason}; a task may have been handed out with that answer")
            raise
        else:
            if raw is not None:
                await self._accept(raw)

    async def _accept(self, raw: Mapping[str, Any], refusal: str = "") -> None:
        """Note the task that was handed over, then let it be taken; what cannot be run is failed at once, with its reason."""
        kind, payload, priority = raw.get("type"), raw.get("payload"), raw.get("priority")
        sound_type = isinstance(kind, str) and 0 < len(kind) <= MAX_TYPE_CHARS
        claim = Claim(
            id=raw["id"].lower(),
            type=str(kind) if sound_type else "",
            payload=payload if isinstance(payload, dict) else {},
            priority=priority if type(priority) is int else 0,
        )
        if claim.id in self._notes or claim.id in self._outbox:
            # Queued again while we were silent; the outcome that is on its way settles it.
            self._event("claim-ignored", task=claim.id, type=claim.type, reason="this node has the task already")
            return
        if (status := raw.get("status")) in OVER:
            self._event("claim-ignored", task=claim.id, type=claim.type, reason=f"it is {status} already")
            return
        if not refusal and not (sound_type and isinstance(payload, dict)):
            refusal = "its payload is not an object" if sound_type else "it has no usable type"
        try:
            await self._notes.put(Entry(claim.id, claim.type, self._api.compute_id))
        except OSError as error:
            self._note_trouble = True
            reason = f"the note of the task in flight could not be kept: {_words(error)}"
            self._event("note-not-kept", task=claim.id, type=claim.type, reason=reason)
            if not refusal:
                self._outbox.put(Item.handed_back(claim, reason, self._on_preempt(claim.type)))
                return
        if refusal:
            self._event("claim-refused", task=claim.id, type=claim.type, reason=f"refused: {refusal}")
            self._outbox.put(Item.settled(claim, {}, f"refused: {refusal}"))
            return
        self._slot = claim

    async def _can_note(self) -> bool:
        """After a note could not be written: nothing is asked for until one can."""
        try:
            await self._notes.check()
        except OSError as error:
            self._event("note-not-kept", reason=f"not asking for work: {_words(error)}")
            return False
        self._note_trouble = False
        return True

    # --- the way back

    def _put(self, item: Item) -> None:
        if self._slot is not None and self._slot.id == item.id:
            self._slot = None
        self._outbox.put(item)

    async def _give_back_unasked(self, wait_s: float) -> None:
        """Read a poll's answer that is on its way, and give back what was not taken."""
        if self._poll is not None:
            await asyncio.wait([self._poll], timeout=wait_s)
        if self._slot is not None:
            self.hand_back(self._slot, "node stopped", self._on_preempt(self._slot.type))

    async def _say_offline(self) -> None:
        if self._api.compute_id:
            await self._sound()

    async def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait([task])

    def _event(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(Exception):  # a journal that fails must not end the link
            self._on_event(EVENT_KIND, {"event": event, **fields})


def _words(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.strerror and error.filename else str(error)
