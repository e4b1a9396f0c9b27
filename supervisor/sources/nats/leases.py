"""The leases of tasks that a fleet has handed to this node, renewed as long as it has them, whatever they do (R2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from states.observation import Link
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock
from supervisor.sources.base import Claim
from supervisor.sources.errors import RequestError
from supervisor.sources.link import RetryingLink
from supervisor.sources.nats import connection as wire
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import Delivery

RENEWALS: Final = 3  # renewals of a lease before it lapses
LAST_MOMENT_S: Final = 0.5  # a lease that ends this soon is not ours to give back any more


@dataclass(slots=True)
class Lease:
    """A delivery that is ours until `ends_s` (CLOCK_BOOTTIME), as far as the server has confirmed."""

    claim: Claim
    reply: str
    count: int
    ends_s: float
    lost: bool = False


class Leases:
    """Every task that is not settled or given back: waiting, in hand, in the outbox.

    `need` gives the connection or raises RequestError; `fail` is told of trouble; `event(name, **fields)` is for the journal.
    """

    def __init__(
        self,
        clock: Clock,
        link: RetryingLink,
        need: Callable[[], Connection],
        fail: Callable[[RequestError], None],
        event: Callable[..., None],
    ) -> None:
        self._clock = clock
        self._link = link
        self._need = need
        self._fail = fail
        self._event = event
        self._by_id: dict[str, Lease] = {}
        self._held = asyncio.Event()
        self._now = asyncio.Event()
        self.length_s = 0.0  # how long one lasts, by the consumer's ack_wait

    def get(self, task_id: str) -> Lease | None:
        """The lease of a task."""
        return self._by_id.get(task_id)

    def pop(self, task_id: str) -> Lease | None:
        """The lease of a task that is settled or goes back: it is not renewed any more."""
        return self._by_id.pop(task_id, None)

    def take(self, claim: Claim, delivery: Delivery) -> Lease:
        """Hold this delivery from now on."""
        lease = Lease(claim, delivery.reply, delivery.count, self._clock.now_s() + self.length_s)
        self._by_id[claim.id] = lease
        self._held.set()
        return lease

    def again(self, lease: Lease, delivery: Delivery) -> None:
        """One that had lapsed was handed to this very node: nobody else has the task, so it goes on here."""
        lease.reply, lease.count, lease.lost = delivery.reply, delivery.count, False
        lease.ends_s = self._clock.now_s() + self.length_s

    def surely_ours(self, lease: Lease) -> bool:
        """It has not lapsed, and will not in a moment."""
        return not lease.lost and self._clock.now_s() <= lease.ends_s - LAST_MOMENT_S

    def renew_now(self) -> None:
        """A link that was down has no time to lose."""
        self._now.set()

    async def run(self) -> None:
        """Renew what is held, in time for two more tries; sleeps while nothing is held."""
        while True:
            await self._held.wait()
            self._now.clear()
            await wait_for_event(self._now, max(0.05, self.length_s / RENEWALS))
            leases = list(self._by_id.values())
            if not leases:
                self._held.clear()
            await asyncio.gather(*(self._renew(lease) for lease in leases))

    async def _renew(self, lease: Lease) -> None:
        sent_s = self._clock.now_s()
        if sent_s >= lease.ends_s and not lease.lost:
            lease.lost = True
            reason = "it could not be renewed in time: another node may have the task as well"
            self._event("lease-lost", task=lease.claim.id, type=lease.claim.type, reason=reason)
        if lease.lost or self._link.link is not Link.UP:
            return  # one that has lapsed may be another node's by now
        try:
            await self._need().word(lease.reply, wire.IN_PROGRESS, timeout_s=self.length_s / RENEWALS)
            lease.ends_s = sent_s + self.length_s
        except RequestError as trouble:
            self._fail(trouble)
        except Exception as error:  # noqa: BLE001  no fault of ours may end the renewals in silence
            self._fail(RequestError(f"a lease could not be renewed ({type(error).__name__})"))
