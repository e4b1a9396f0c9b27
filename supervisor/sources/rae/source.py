"""The control node over HTTP as a source of tasks: the link, the poll, the one claim, and the way back (R1, R2, R20, R21).

The link (see linked.py) finds the dialect, registers and gives heartbeats; the outbox's worker is the way back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from states.ending import Ending, handed_back
from states.observation import Link
from supervisor.linux.bounded import end
from supervisor.linux.clock import Clock
from supervisor.sources.base import Availability, Claim, SourceEvents, SourceSettings, Wake, with_saved_state
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import InFlightTask
from supervisor.sources.link import STOPPED
from supervisor.sources.network_source import NetworkSource
from supervisor.sources.rae.api import BAD_GATEWAY, NotFound, RaeApi, TaskTooLarge, UnknownPath
from supervisor.sources.rae.outbox import OVER, Item, Outbox
from supervisor.sources.rae.transport import Transport

MAX_TYPE_CHARS: Final = 200


class RaeSource(NetworkSource):
    """A `Source`."""

    def __init__(self, settings: SourceSettings, clock: Clock, events: SourceEvents) -> None:
        super().__init__(settings, clock, events)
        self._transport = Transport(settings.control, clock, settings.token)
        self._api = RaeApi(
            self._transport, settings.control,
            node_id=settings.node_id, token=settings.token, capabilities=settings.capabilities,
        )
        self._outbox = Outbox(
            self._api,
            self._notes,
            on_preempt=self._on_preempt,
            event=self._event,
            on_trouble=self._fail,
            blame=self._link.blame,
            sound=self._sound,
            wake=lambda: self._wake(),
        )
        self._poll_lost = False  # the server may have handed out a task that we do not know of
        self._note_trouble = False
        self._connecting = asyncio.Lock()

    # --- the protocol

    async def start(self, wake: Wake) -> None:
        """Begin; the work goes on in tasks of its own."""
        self._wake = wake
        for entry in await self._left_noted():
            self._event("note-found", task=entry.id, type=entry.type, reason="the node stopped while it had this task")
            self._outbox.put(Item.left(entry))
        self._work = [asyncio.create_task(self._link.run()), asyncio.create_task(self._outbox.run())]

    async def stop(self, deadline_s: float) -> None:
        """Say OFFLINE and deliver what the outbox holds; a claim not taken is given back. Takes `deadline_s` at most."""
        self._stopping = True
        self._availability = Availability.OFFLINE
        self._transport.lift()
        try:
            async with asyncio.timeout(deadline_s):
                if self._work:
                    await end(self._work[0])
                    self._outbox.open()
                    await asyncio.gather(self._give_back_unasked(deadline_s / 2), self._say_offline())
                    if self._api.compute_id or not self.crash_note:  # a left task needs a server that was reached
                        await self._outbox.last_chance()
        except TimeoutError:
            pass
        finally:
            if self._poll is not None:
                reason = "the node stopped before its answer came; a task may have been handed out with that answer"
                self._event("poll-lost", reason=reason)
                await end(self._poll)
            await end(*self._work)
            for task_id in self._outbox.ids:
                self._event("undelivered", task=task_id, reason="the node stopped first; settled at its next start")
            await self._transport.close()
            self._link.say(Link.DOWN, STOPPED)

    def settle(self, claim: Claim, ending: Ending) -> None:
        """Put the outcome into the outbox."""
        self._put(Item.settled(claim, ending.result, ending.error))

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        """Put the giving back into the outbox; a claim not taken yet no longer waits."""
        self._put(Item.handed_back(with_saved_state(claim, ending), ending.error or "", on_preempt))

    def resume(self) -> None:
        """See NetworkSource; what the server asked for is forgotten too."""
        self._transport.lift()
        super().resume()

    @property
    def crash_note(self) -> bool:
        """A task that a crash left is not settled yet; nothing is asked for meanwhile."""
        return self._outbox.recovering

    # --- the link

    @property
    def _url(self) -> str:
        return self._transport.url

    @property
    def _dialect(self) -> str:
        return self._api.dialect

    @property
    def _undelivered(self) -> int:
        return len(self._outbox)

    async def _beat(self) -> None:
        try:
            await self._api.heartbeat(self._availability)
        except (NotFound, UnknownPath):
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
            await self._api.introduce(self._availability)

    async def _part(self) -> None:
        """No connection outlives its request: nothing to clear up."""

    def _changed(self, link: Link, reason: str) -> None:
        if link is Link.UP:
            self._outbox.registered()
        elif link is Link.LOST:
            self._outbox.close()
        super()._changed(link, reason)

    async def _sound(self) -> bool:
        """Whether the server takes a heartbeat right now."""
        return await self._api.takes_heartbeat(self._availability)

    # --- the poll

    def _may_ask(self) -> bool:
        """A poll is never repeated by itself, for a lost answer may have been a task. After a lost one, what is known must
        be settled first (see `_connect`)."""
        return super()._may_ask() and not self.crash_note and not (self._poll_lost and self._notes)

    async def _poll_once(self) -> None:
        if self._note_trouble and not await self._can_note():
            return
        if self._poll_lost:  # the link was made anew while a task was not settled yet
            await self._connect()
        try:
            await self._fetch()
        except (NotFound, UnknownPath):  # nothing was handed out: it is safe to ask again, once
            await self._connect()
            await self._fetch()
        self._link.proven = True

    async def _fetch(self) -> None:
        try:
            raw = await self._api.poll()
        except TaskTooLarge as large:  # what is known of it is enough to fail it
            await self._accept({"id": large.task_id}, f"it is larger than this node reads: {large.reason}")
        except RequestError as trouble:
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
        sound_type = isinstance(kind, str) and 0 < len(kind) <= MAX_TYPE_CHARS and kind.isprintable()
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
            await self._notes.put(InFlightTask(claim.id, claim.type, self._api.compute_id))
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

    def _on_preempt(self, task_type: str) -> str:
        return self._settings.on_preempt.get(task_type, "resubmit")

    def _put(self, item: Item) -> None:
        self._no_longer_waits(item.id)
        self._outbox.put(item)

    async def _give_back_unasked(self, wait_s: float) -> None:
        """Read a poll's answer that is on its way, and give back what was not taken."""
        if self._poll is not None:
            await asyncio.wait([self._poll], timeout=wait_s)
        if self._slot is not None:
            self.hand_back(self._slot, handed_back("node stopped"), self._on_preempt(self._slot.type))

    async def _say_offline(self) -> None:
        if self._api.compute_id:
            await self._sound()


def _words(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.strerror and error.filename else str(error)
