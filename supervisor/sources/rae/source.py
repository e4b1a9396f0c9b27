"""The control node over HTTP as a source of tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from states.ending import Ending, failed, handed_back
from states.observation import Link
from supervisor.linux.bounded import end
from supervisor.linux.clock import Clock
from supervisor.sources.base import Availability, Claim, Source, SourceEvents, SourceSettings
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import InFlightTask
from supervisor.sources.lost_attempts import GIVEN_UP, MAX_LOST, read_count
from supervisor.sources.network_source import NetworkSource
from supervisor.sources.rae.api import BAD_GATEWAY, NotFound, RaeApi, TaskTooLarge, UnknownPath
from supervisor.sources.rae.outbox import OVER, Item, RaeOutbox
from supervisor.sources.rae.transport import Transport

MAX_TYPE_CHARS: Final = 200
# The pause after a lost poll, doubled with each in a row: each may cost the control node one more task.
LOST_POLL_FIRST_S: Final = 30.0
LOST_POLL_LONGEST_S: Final = 1800.0


class RaeSource(NetworkSource):
    """A `Source`."""

    _undelivered_reason = "the node stopped first; settled at its next start"
    _outbox: RaeOutbox

    def __init__(self, settings: SourceSettings, clock: Clock, events: SourceEvents) -> None:
        super().__init__(settings, clock, events)
        self._transport = Transport(settings.control, clock)
        self._api = RaeApi(self._transport, settings)
        self._outbox = RaeOutbox(self._api, settings, self._link, self._record, self._log)
        self._run_over = False  # the server may have handed out a task to this run of which the node does not know
        self._lost_in_a_row = 0
        self._ask_after_s, self._lost_reason = 0.0, ""
        self._record_failed = False
        self._connecting = asyncio.Lock()

    # --- the protocol

    def settle(self, claim: Claim, ending: Ending) -> None:
        self._put(Item.settled(claim.id, claim.type, ending.result, ending.error))

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        self._put(Item.handed_back(claim, ending, on_preempt))

    def resume(self) -> None:
        """See Source; a wait that the server asked for ends as well."""
        self._transport.lift()
        self._ask_after_s = 0.0
        super().resume()

    # --- start and stop

    async def take_over(self, old: Source) -> None:
        """See Source; a server that lost polls may be the same one."""
        if not isinstance(old, RaeSource):
            return
        await end(*old._work[1:2])  # its outbox's worker
        self._outbox.take(old._outbox)
        self._lost_polls, self._lost_poll_s = old._lost_polls, old._lost_poll_s
        self._run_over, self._lost_in_a_row, self._lost_reason = old._run_over, old._lost_in_a_row, old._lost_reason
        self._ask_after_s = old._ask_after_s

    async def _recover(self, task: InFlightTask) -> None:
        self._log("note-found", task, reason="the node stopped while it had this task")
        self._outbox.put(Item.left(task))

    async def _finish(self, deadline_s: float) -> None:
        self._transport.lift()
        if self._work:
            await end(self._work[0])
            await asyncio.gather(self._give_back_untaken(deadline_s / 2), self._report_offline())
            if self._api.compute_id or not self._outbox.recovering:  # a task of a crash needs a server that was reached
                await self._outbox.deliver_all()

    async def _report_offline(self) -> None:
        if self._api.compute_id:
            with contextlib.suppress(RequestError):
                await self._api.heartbeat(Availability.OFFLINE)

    async def _end(self) -> None:
        if self._poll is not None:
            self._poll_lost("the node stopped before its answer came")
        await super()._end()
        await self._transport.close()

    # --- the link

    @property
    def _url(self) -> str:
        return self._transport.url

    @property
    def _dialect(self) -> str:
        return self._api.dialect

    async def _beat(self) -> None:
        try:
            await self._api.heartbeat(self._availability)
        except (NotFound, UnknownPath):
            await self._connect()

    async def _connect(self) -> None:
        """Find the dialect if need be, register, and report the availability.

        After a lost poll there is a pause. Then the server must answer a question that changes nothing, before it is asked
        for a task again.

        After a lost poll the node registers as another run, once each task that it knows of is settled: a server that looks
        at runs takes back what else it handed to the earlier run.
        """
        async with self._connecting:
            if (left_s := self._ask_after_s - self._clock.now_s()) > 0:
                reason = f"a poll was lost: {self._lost_reason}"
                raise RequestError(reason, sent=False, retry_after_s=left_s)
            if self._run_over and not self._record:
                self._api.new_run()
                self._run_over = False
            await self._api.introduce(self._availability)
            if self._lost_in_a_row:
                await self._api.answers()

    def _changed(self, link: Link, reason: str) -> None:
        if link is Link.UP:
            self._outbox.open()
        elif link is Link.LOST:
            self._outbox.close()
        super()._changed(link, reason)

    # --- the poll

    def _may_ask(self) -> bool:
        """What a crash left must be settled first; after a lost poll, each known task (see `_connect`)."""
        unsettled = self._outbox.recovering or (self._run_over and self._record)
        return super()._may_ask() and not unsettled

    async def _poll_once(self) -> None:
        if self._record_failed and not await self._can_record():
            return
        if self._run_over:  # the link was made again while a task was not settled yet
            await self._connect()
        try:
            await self._fetch()
        except (NotFound, UnknownPath):  # nothing was handed out: it is safe to ask again, once
            await self._connect()
            await self._fetch()
        self._link.proven = True
        self._lost_in_a_row = 0

    async def _fetch(self) -> None:
        try:
            raw = await self._api.poll()
        except TaskTooLarge as large:  # its id is enough to fail it
            await self._accept({"id": large.task_id}, f"it is larger than this node reads: {large.reason}")
        except RequestError as error:
            if error.sent and (error.status is None or error.status >= BAD_GATEWAY):
                self._run_over = True
                self._lost_reason = error.reason
                self._ask_after_s = self._clock.now_s() + min(LOST_POLL_FIRST_S * 2**self._lost_in_a_row, LOST_POLL_LONGEST_S)
                self._lost_in_a_row += 1
                self._poll_lost(error.reason)
            raise
        else:
            if raw is not None:
                await self._accept(raw)

    async def _accept(self, raw: Mapping[str, Any], refusal: str = "") -> None:
        """Record the task that was handed over, then let it be taken. A task that cannot be run fails at once."""
        task_type, payload, priority = raw.get("type"), raw.get("payload"), raw.get("priority")
        good_type = isinstance(task_type, str) and 0 < len(task_type) <= MAX_TYPE_CHARS and task_type.isprintable()
        claim = read_count(
            Claim(
                id=raw["id"].lower(),
                type=str(task_type) if good_type else "",
                payload=payload if isinstance(payload, dict) else {},
                priority=priority if type(priority) is int else 0,
            )
        )
        if claim.id in self._record or claim.id in self._outbox:
            # The server queued it again while this node was silent; the outcome on its way settles it.
            self._log("claim-ignored", claim, reason="this node has the task already")
            return
        if (status := raw.get("status")) in OVER:
            self._log("claim-ignored", claim, reason=f"it is {status} already")
            return
        if not refusal and not (good_type and isinstance(payload, dict)):
            refusal = "its payload is not an object" if good_type else "it has no usable type"
        try:
            await self._record.put(InFlightTask(claim.id, claim.type, self._api.compute_id, lost=claim.lost))
        except OSError as error:
            self._record_failed = True
            reason = f"the note of the task in flight could not be kept: {_describe(error)}"
            self._log("note-not-kept", claim, reason=reason)
            if not refusal:
                self.hand_back(claim, handed_back(reason), self._settings.preempted(claim.type))
                return
        if refusal:
            self._log("claim-refused", claim, reason=f"refused: {refusal}")
            self.settle(claim, failed(f"refused: {refusal}"))
            return
        if claim.lost >= MAX_LOST:
            self._log("given-up", claim, reason=GIVEN_UP)
            self.settle(claim, failed(GIVEN_UP))
            return
        self._claim = claim

    async def _can_record(self) -> bool:
        """After a failure to write the record: the node does not poll until it can be written."""
        try:
            await self._record.check()
        except OSError as error:
            self._log("note-not-kept", reason=f"not asking for work: {_describe(error)}")
            return False
        self._record_failed = False
        return True

    def _put(self, item: Item) -> None:
        self._no_longer_waits(item.id)
        self._outbox.put(item)


def _describe(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.strerror and error.filename else str(error)
