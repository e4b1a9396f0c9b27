"""The leases of the tasks that a fleet has handed to this node. They are renewed as long as the node has the tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock
from supervisor.sources.base import Claim
from supervisor.sources.errors import RequestError, own_faults
from supervisor.sources.events import EventLog
from supervisor.sources.link import RetryingLink
from supervisor.sources.nats.connection import IN_PROGRESS, Connection
from supervisor.sources.nats.errors import Delivery

RENEWALS: Final = 3  # renewals of a lease before it lapses
LAST_MOMENT_S: Final = 0.5  # a lease that ends this soon cannot be given back any more


@dataclass(slots=True)
class Lease:
    """A delivery that is ours until `ends_s` (CLOCK_BOOTTIME), as far as the server has confirmed."""

    claim: Claim
    reply: str
    count: int
    ends_s: float
    lost: bool = False


class Leases:
    """One lease for each task that is not settled or given back: waiting, in hand, in the outbox."""

    def __init__(self, clock: Clock, connection: Connection, link: RetryingLink, log: EventLog) -> None:
        self._clock = clock
        self._connection = connection
        self._link = link
        self._log = log
        self._by_id: dict[str, Lease] = {}
        self._filled = asyncio.Event()
        self._now = asyncio.Event()
        self.length_s = 0.0  # how long a lease lasts: the consumer's ack_wait

    def get(self, task_id: str) -> Lease | None:
        """The lease of a task."""
        return self._by_id.get(task_id)

    def pop(self, task_id: str) -> Lease | None:
        """The lease of a task that is settled or goes back: it is not renewed any more."""
        return self._by_id.pop(task_id, None)

    def take(self, other: Leases, task_ids: Iterable[str]) -> None:
        """Renew these tasks' leases in the place of `other`."""
        self._by_id |= {task_id: lease for task_id in task_ids if (lease := other.pop(task_id)) is not None}
        self.length_s = other.length_s
        self._filled.set()

    def begin(self, claim: Claim, delivery: Delivery) -> Lease:
        """Renew the lease of this delivery from now on."""
        lease = Lease(claim, delivery.reply, delivery.count, self._clock.now_s() + self.length_s)
        self._by_id[claim.id] = lease
        self._filled.set()
        return lease

    def redelivered(self, lease: Lease, delivery: Delivery) -> None:
        """The task of a lapsed lease was handed to this node again: no other node has it, so it goes on here."""
        lease.reply, lease.count, lease.lost = delivery.reply, delivery.count, False
        lease.ends_s = self._clock.now_s() + self.length_s

    def surely_ours(self, lease: Lease) -> bool:
        """The lease has not lapsed, and does not lapse in a moment."""
        return not lease.lost and self._clock.now_s() <= lease.ends_s - LAST_MOMENT_S

    def renew_now(self) -> None:
        """The link is back: renew at once."""
        self._now.set()

    async def run(self) -> None:
        """Renew all leases, in time for two more tries; never returns."""
        while True:
            await self._filled.wait()
            self._now.clear()
            await wait_for_event(self._now, max(0.05, self.length_s / RENEWALS))
            leases = list(self._by_id.values())
            if not leases:
                self._filled.clear()
            await asyncio.gather(*(self._renew(lease) for lease in leases))

    async def _renew(self, lease: Lease) -> None:
        sent_s = self._clock.now_s()
        if sent_s >= lease.ends_s and not lease.lost:
            lease.lost = True
            reason = "it could not be renewed in time: another node may have the task as well"
            self._log("lease-lost", lease.claim, reason=reason)
        if lease.lost or not self._link.up:
            return  # a lapsed lease may be another node's by now
        try:
            with own_faults("a lease could not be renewed"):
                answered = self._connection.acknowledge(lease.reply, IN_PROGRESS, timeout_s=self.length_s / RENEWALS)
                lease.reply = await answered
            lease.ends_s = sent_s + self.length_s
        except RequestError as error:
            self._link.fail(error)
