"""The outbox to a fleet: results in memory until the fleet has stored them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from supervisor.sources.errors import RequestError
from supervisor.sources.events import EventLog
from supervisor.sources.in_flight import InFlightRecord
from supervisor.sources.link import RetryingLink
from supervisor.sources.nats.connection import ACK, Connection
from supervisor.sources.nats.errors import TOO_LARGE, Exists, Refused
from supervisor.sources.nats.leases import Lease, Leases
from supervisor.sources.nats.messages import Result
from supervisor.sources.nats.subjects import result_subject, token
from supervisor.sources.outbox import Outbox

NOT_OURS: Final = 403  # the gate's: the lease is not this node's, or not of this fleet
REMEMBERED: Final = 512  # tasks whose results are stored, in case one is delivered once more


@dataclass(slots=True)
class Outcome:
    """A result on its way."""

    lease: Lease
    result: Result
    body: bytes = b""
    replaced: bool = False  # by the reason why the fleet does not take it
    blind: bool = False  # it was sent, and the answer was lost
    stored: bool = False  # the fleet has it; the task is not acknowledged yet

    @property
    def id(self) -> str:
        return self.result.id

    @property
    def type(self) -> str:
        return self.result.type


class ResultOutbox(Outbox[Outcome]):
    """Stores results, and acknowledges their tasks."""

    def __init__(
        self, connection: Connection, leases: Leases, link: RetryingLink, record: InFlightRecord, log: EventLog
    ) -> None:
        super().__init__(link, record, log)
        self._connection = connection
        self._leases = leases
        self._stored: OrderedDict[str, None] = OrderedDict()
        self.second = 0  # results that another node's result came before

    def stored(self, task_id: str) -> bool:
        """This node has stored the task's result, as far as it remembers."""
        return task_id in self._stored

    def take(self, other: Outbox[Outcome]) -> None:
        """See Outbox."""
        super().take(other)
        if isinstance(other, ResultOutbox):
            self._stored, self.second = other._stored, other.second

    def _finished(self, item: Outcome) -> None:
        self._leases.pop(item.id)

    async def _deliver(self, item: Outcome) -> None:
        try:
            await self._store(item)
        except Refused as refused:
            if refused.status == NOT_OURS and not item.stored:  # after a change of control.url it may be another fleet's
                self._log("outcome-lost", item, reason=refused.reason)
                return
            if item.replaced:
                raise
            self._replace(item, refused)
            await self._store(item)

    async def _store(self, item: Outcome) -> None:
        """Store the result, then acknowledge the task: if the node dies between the two, the next node acknowledges it."""
        result = item.result
        if not item.body:
            item.body = await asyncio.to_thread(result.encode)
        first = True
        if not item.stored:
            try:
                # the message id names the node: the same result sent again is the same message, another node's is not
                subject, msg_id = result_subject(item.id), f"{item.id}.{token(result.node)}"
                await self._connection.store(subject, item.body, msg_id, lease=item.lease.reply)
                item.stored = True
            except Exists:
                first = False
            except RequestError as error:
                item.blind = item.blind or (error.sent and not isinstance(error, Refused))
                raise
        await self._connection.acknowledge(item.lease.reply, ACK)
        self._stored[item.id] = None
        while len(self._stored) > REMEMBERED:
            self._stored.popitem(last=False)
        if first:
            self._log("delivered", item, error=result.error is not None)
            return
        self.second += 1
        whose = "another node's result, or this one, whose answer was lost," if item.blind else "another node's result"
        self._log("done-twice", item, reason=f"{whose} was first, and stands; this one is dropped")

    def _replace(self, item: Outcome, refused: Refused) -> None:
        """The fleet refuses this result for good: the refusal's reason becomes the outcome."""
        what = "result too large" if refused.status == TOO_LARGE else "the fleet refused the result"
        error = f"{what}: {refused.reason}"
        error = error if item.result.error is None else f"{item.result.error} ({error})"
        self._log("outcome-refused", item, reason=refused.reason)
        item.result, item.body, item.replaced = replace(item.result, result={}, error=error), b"", True
