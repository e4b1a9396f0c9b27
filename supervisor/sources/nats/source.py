"""A fleet's queue on NATS JetStream as a source of tasks (R1, R2, R20, R21, R23).

A claim is a delivery with a lease: `ack_wait` of the consumer, renewed while the task is here, whatever the task does. A
node that dies, or loses its network, loses the lease, and another node gets the task. Given back, it goes on at once.
A result is stored first and the task acknowledged then; only the first result of a task is stored, so a task done twice
(once on each side of a cut network) is known to have been, by the engine and in both nodes' journals.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from states.ending import Ending, failed, handed_back
from states.observation import Link
from supervisor.linux.bounded import end
from supervisor.linux.clock import Clock
from supervisor.sources import sanitize as clean
from supervisor.sources.base import Availability, Claim, SourceEvents, SourceSettings, Wake, with_saved_state
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import InFlightTask
from supervisor.sources.link import STOPPED
from supervisor.sources.nats import connection as wire
from supervisor.sources.nats import subjects as layout
from supervisor.sources.nats.connection import Connection, Server
from supervisor.sources.nats.errors import Delivery, Exists, Refused
from supervisor.sources.nats.leases import Lease, Leases
from supervisor.sources.nats.messages import Poison, Result, decode_place, decode_task
from supervisor.sources.nats.registry import entry
from supervisor.sources.nats.results import Results
from supervisor.sources.network_source import NetworkSource

UNFIT_S: Final = 2  # until a task that this node does not run is handed out again; twice as long each time,
UNFIT_SOON: Final = 5  # once it was handed out so often,
UNFIT_MAX_S: Final = 300  # up to this
GIVE_BACK: Final = b'-NAK {"delay": 0}'
FOREVER_S: Final = 1e9  # no lease lasts so long
POLL_MARGIN_S: Final = 0.05  # a lingering poll is over before the next one is due


class NatsSource(NetworkSource):
    """A `Source`."""

    _pace_s = 1.0  # between two entries in the registry

    def __init__(self, settings: SourceSettings, clock: Clock, events: SourceEvents) -> None:
        super().__init__(settings, clock, events)
        control = settings.control
        self._node_id = settings.node_id
        self._consumer = control.nats.consumer
        self._server = Server(control.url, settings.node_id, settings.token, control.ca_file)
        self._wire: Connection | None = None
        self._connected_to = ""
        self._max_deliver = 0
        self._enough = asyncio.Event()
        self._until_s = 0.0
        self._leases = Leases(clock, self._link, self._need, self._fail, self._event)
        self._results = Results(
            self._link, self._need, settled=self._settled, second=self._was_second, fail=self._fail, event=self._event
        )
        self._giving: set[asyncio.Task[None]] = set()
        self.counts = {"done": 0, "failed": 0, "handed_back": 0, "second": 0}

    # --- the protocol

    async def start(self, wake: Wake) -> None:
        """Begin; the work goes on in tasks of its own. What a crash left needs nothing of us: its lease has lapsed, or will."""
        self._wake = wake
        for noted in await self._left_noted():
            self._event("note-found", task=noted.id, type=noted.type, reason="its lease ends, and another node gets it")
            await self._unnote(noted.id)
        self._work = [asyncio.create_task(job) for job in (self._link.run(), self._leases.run(), self._results.run())]

    async def stop(self, deadline_s: float) -> None:
        """Say OFFLINE, give back what was not taken, and deliver what the outbox holds. Takes `deadline_s` at most."""
        self._stopping = True
        self._availability = Availability.OFFLINE
        try:
            async with asyncio.timeout(deadline_s):
                self._enough.set()
                if self._poll is not None:
                    await asyncio.wait([self._poll])
                if self._slot is not None:
                    self.hand_back(self._slot, handed_back("the node stopped"), "resubmit")
                if self._giving:
                    await asyncio.wait(self._giving)
                if self._link.link is Link.UP:
                    await asyncio.gather(self._results.last_chance(), self._beat(), return_exceptions=True)
        except TimeoutError:
            pass
        finally:
            await end(*self._work, *self._giving, *([self._poll] if self._poll is not None else []))
            for task_id in self._results.ids:
                self._event("undelivered", task=task_id, reason="the node stopped first; another node gets the task")
            await self._part()
            self._link.say(Link.DOWN, STOPPED)

    def ask(self) -> bool:
        """Start one poll: what is there at once, else, in READY, what comes before the next poll is due."""
        if not self._may_ask():
            return False
        self._enough.clear()
        self._until_s = self._clock.now_s() + self._settings.poll_interval_s - POLL_MARGIN_S
        return super().ask()

    def settle(self, claim: Claim, ending: Ending) -> None:
        """Put the outcome into the outbox."""
        lease = self._leases.get(claim.id)
        if lease is None or claim.id in self._results.ids:
            self._event("outcome-ignored", task=claim.id, type=claim.type, reason="the task has an outcome already")
            return
        self._no_longer_waits(claim.id)
        self.counts["done" if ending.error is None else "failed"] += 1
        reason = None if ending.error is None else clean.reason(ending.error)
        self._results.put(lease, Result(claim.id, claim.type, self._node_id, ending.result, reason))

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        """Give it to the next node now; or, with on_preempt "fail", fail it."""
        self._no_longer_waits(claim.id)
        if on_preempt == "fail":
            self.settle(claim, failed(f"preempted: {clean.reason(ending.error or '')}"))
            return
        lease = None if claim.id in self._results.ids else self._leases.pop(claim.id)
        if lease is None:
            self._event("outcome-ignored", task=claim.id, type=claim.type, reason="the task has an outcome already")
            return
        self.counts["handed_back"] += 1
        saved, reason = with_saved_state(claim, ending), clean.reason(ending.error or "")
        self._giving.add(task := asyncio.create_task(self._give_back(lease, saved, reason)))
        task.add_done_callback(self._giving.discard)

    def announce(self, availability: Availability) -> None:
        """What the registry says; a node that is no longer READY asks for nothing more."""
        if availability is not self._availability and availability is not Availability.ONLINE:
            self._enough.set()
        super().announce(availability)

    @property
    def crash_note(self) -> bool:
        """Never: the lease settles what a crash left."""
        return False

    # --- the link

    @property
    def _url(self) -> str:
        return self._connected_to or self._server.url

    @property
    def _dialect(self) -> str:
        return "jetstream"

    @property
    def _undelivered(self) -> int:
        return len(self._results)

    async def _connect(self) -> None:
        self._wire = Connection(self._server, name=self._node_id, on_lost=lambda reason: self._fail(RequestError(reason)))
        await self._wire.open()
        self._connected_to = self._wire.url
        try:
            settings = (await self._wire.api(f"CONSUMER.INFO.{layout.TASKS}.{self._consumer}"))["config"]
            if settings["ack_policy"] != "explicit":
                reason = f"{self._url}: its consumer {self._consumer} gives no leases (ack_policy: explicit is expected)"
                raise RequestError(f"{reason}; see deploy/fleet")
            length_s, most = settings["ack_wait"] / 1e9, int(settings.get("max_deliver", -1))
            if not 0 < length_s < FOREVER_S:
                raise ValueError
            self._leases.length_s, self._max_deliver = length_s, most
        except Refused as missing:
            raise RequestError(f"{self._url} has no consumer {self._consumer}: {missing.reason}; see deploy/fleet") from None
        except (KeyError, TypeError, ValueError, OverflowError):
            raise RequestError(f"{self._url} describes its consumer {self._consumer} as none that is known") from None
        await self._beat()
        self._results.hurry()
        self._leases.renew_now()

    async def _beat(self) -> None:
        """Write what there is to know of this node into the registry."""
        types = sorted(self._settings.on_preempt)
        known = {"node": self._node_id, "availability": self._availability, "types": types, **self.counts}
        body = entry(known, self._events.describe(), self._clock.wall_s())
        answer = await self._need().request(layout.node_subject(self._node_id), body)
        if b'"error"' in answer.data:
            raise RequestError(f"{self._url}: the registry of nodes does not take this node's entry; see deploy/fleet")

    async def _part(self) -> None:
        link, self._wire = self._wire, None
        self._enough.set()
        if link is not None:
            await link.close()

    def _need(self) -> Connection:
        if self._wire is None:
            raise RequestError("not connected", sent=False)
        return self._wire

    # --- the poll

    async def _poll_once(self) -> None:
        """What is there at once; in READY also what comes before the next poll is due."""
        delivery = await self._need().pull(layout.TASKS, self._consumer, linger_s=self._linger_s, enough=self._enough)
        if delivery is not None:
            await self._accept(delivery)

    def _linger_s(self) -> float:
        """Only in READY: elsewhere the answer is wanted at once."""
        return self._until_s - self._clock.now_s() if self._availability is Availability.ONLINE else 0.0

    async def _accept(self, delivery: Delivery) -> None:
        """Let a task be taken, or see to it that another node, or nobody, gets it."""
        link = self._need()
        try:
            claim = decode_task(delivery.data)
        except Poison as poison:
            await self._bury(delivery, str(poison), poison.task_id, "")
            return
        if self._results.stored(claim.id):
            await link.word(delivery.reply, wire.ACK)
            self._event("claim-ignored", task=claim.id, type=claim.type, reason="its result is stored already")
            return
        if (lease := self._leases.get(claim.id)) is not None:
            self._leases.again(lease, delivery)
            self._event("claim-ignored", task=claim.id, type=claim.type, reason="this node has the task already")
            return
        if 0 < self._max_deliver <= delivery.count:
            reason = f"given up after {delivery.count} deliveries, the most that the fleet gives (max_deliver)"
            await self._bury(delivery, reason, claim.id, claim.type)
            return
        if claim.type not in self._settings.on_preempt:
            await link.word(delivery.reply, unfit(delivery.count))
            self._event("claim-passed-on", task=claim.id, type=claim.type, reason="this node does not run this type")
            return
        lease = self._leases.take(claim, delivery)
        if delivery.count > 1:
            lease.claim = claim = await self._with_its_place(claim)
        try:
            await self._notes.put(InFlightTask(claim.id, claim.type))
        except OSError as error:
            self._event("note-not-kept", task=claim.id, type=claim.type, reason=str(error))
        self._slot = claim

    async def _with_its_place(self, claim: Claim) -> Claim:
        """The task with what it had saved when it was given back. Without it, it begins anew, which is always right."""
        try:
            data = await self._need().last(layout.PLACES, layout.place_subject(claim.id))
            return claim if data is None else replace(claim, payload={**claim.payload, **decode_place(data)})
        except (RequestError, Poison):
            return claim

    async def _bury(self, delivery: Delivery, reason: str, task_id: str, kind: str) -> None:
        """Nobody can run it: keep it where an operator finds it, tell its submitter, and end it."""
        link, name = self._need(), task_id or f"sequence-{delivery.sequence}"
        subject, msg_id = layout.dead_subject(name), f"dead-{delivery.sequence}"
        try:
            await link.store(subject, delivery.data, msg_id, {layout.REASON_HEADER: reason})
        except Refused as refused:  # left in the queue, it would fail every node's poll: without its content, then
            reason = f"{reason}; its content is not kept: {refused.reason}"
            await link.store(subject, b"", msg_id, {layout.REASON_HEADER: reason})
        if task_id:
            failed = Result(task_id, kind, self._node_id, {}, f"dead: {reason}")
            with contextlib.suppress(Exists):
                await link.store(layout.result_subject(task_id), failed.encode(), f"{task_id}.dead")
        await link.word(delivery.reply, wire.TERM)
        self._event("dead-letter", task=name, type=kind, reason=reason)

    # --- the way back

    async def _give_back(self, lease: Lease, claim: Claim, reason: str) -> None:
        """Now, while the lease is surely ours; else its end does the same, a little later. What is new in the payload is the
        place that the task has saved: it goes ahead, for the node that has the task next."""
        place = {key: value for key, value in claim.payload.items() if lease.claim.payload.get(key) != value}
        word = "handed-back"
        try:
            self._must_be_ours(lease)
            if place:
                await self._save(claim, place, lease.count)
                self._must_be_ours(lease)
            await self._need().word(lease.reply, GIVE_BACK)
        except Exception as error:  # noqa: BLE001  trouble or a fault of ours: the end of the lease does the same
            why = error.reason if isinstance(error, RequestError) else f"it failed ({type(error).__name__})"
            word, reason = "handed-back-by-lease", f"{reason}; {why}"
        self._event(word, task=claim.id, type=claim.type, reason=reason)
        await self._unnote(claim.id)

    def _must_be_ours(self, lease: Lease) -> None:
        """A word for a task that is another node's by now would take it from that one."""
        if not self._leases.surely_ours(lease):
            raise RequestError("its lease has ended")

    async def _save(self, claim: Claim, place: Mapping[str, Any], count: int) -> None:
        body = await asyncio.to_thread(lambda: clean.encode(clean.mapping(place)))
        try:
            msg_id = f"{claim.id}.{layout.token(self._node_id)}.{count}"
            await self._need().store(layout.place_subject(claim.id), body, msg_id)
        except RequestError as trouble:
            self._event("place-lost", task=claim.id, type=claim.type, reason=f"it begins anew: {trouble.reason}")

    async def _settled(self, task_id: str) -> None:
        self._leases.pop(task_id)
        await self._unnote(task_id)

    def _was_second(self) -> None:
        self.counts["second"] += 1

    async def _unnote(self, task_id: str) -> None:
        try:
            await self._notes.remove(task_id)
        except OSError as error:
            self._event("note-not-kept", task=task_id, reason=str(error))


def unfit(count: int) -> bytes:
    """The word for a task that this node does not run, handed out for the `count`th time. The fleet hands each out so many
    times only (max_deliver) before it is given up: they must last until a node that runs it is free."""
    delay_s = min(UNFIT_S << min(max(0, count - UNFIT_SOON), 10), UNFIT_MAX_S)
    return b'-NAK {"delay": %d}' % (delay_s * 10**9)
