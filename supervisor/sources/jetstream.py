"""A fleet's queue on NATS JetStream as a source of tasks (R1, R2, R20, R21, R23).

A claim is a delivery with a lease: `ack_wait` of the consumer, renewed while the task is here, whatever the task does. A
node that dies, or loses its network, loses the lease, and another node gets the task. Given back, it goes on at once.
A result is stored first and the task acknowledged then; only the first result of a task is stored, so a task done twice
(once on each side of a cut network) is known to have been, by the engine and in both nodes' journals.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from states.observation import Link
from supervisor.clock import Clock
from supervisor.fleet import layout, wire
from supervisor.fleet.forms import Poison, Result, decode_place, decode_task
from supervisor.fleet.registry import entry
from supervisor.fleet.wire import Delivery, Exists, Refused, Server, Wire
from supervisor.settings import Control
from supervisor.sources import clean
from supervisor.sources.base import Availability, Claim, LinkStatus, Wake
from supervisor.sources.link import KeptLink, end
from supervisor.sources.note import Entry, Notes
from supervisor.sources.transport import Trouble

EVENT_KIND: Final = "link"
PERMITTED_S: Final = 1.0  # between two entries in the registry
RENEWALS: Final = 3  # renewals of a lease before it lapses
LAST_MOMENT_S: Final = 0.5  # a lease that ends this soon is not ours to give back any more
UNFIT_DELAY: Final = b'-NAK {"delay": 2000000000}'
GIVE_BACK: Final = b'-NAK {"delay": 0}'
MAX_WAITING: Final = 200  # outcomes kept in memory; beyond, no more work is asked for
MAX_WAITING_BYTES: Final = 128 << 20
REMEMBERED: Final = 512  # tasks whose results are stored, should one be delivered once more
POLL_MARGIN_S: Final = 0.05  # a lingering poll is over before the next one is due
PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  # between tries to deliver while the link is up


@dataclass(slots=True)
class Lease:
    """A delivery that is ours until `ends_s` (CLOCK_BOOTTIME), as far as the server has confirmed."""

    claim: Claim
    reply: str
    count: int
    ends_s: float
    lost: bool = False


@dataclass(slots=True)
class Outcome:
    """A result on its way."""

    lease: Lease
    result: Result
    body: bytes = b""


class JetStream:
    """A `Source`. `describe()` is what the registry tells of this node beside what the source itself knows."""

    def __init__(
        self,
        settings: Control,
        *,
        node_id: str,
        clock: Clock,
        state_dir: Path,
        heartbeat_interval_s: float,
        poll_interval_s: float,
        retry_on_disconnect: bool,
        task_types: frozenset[str],
        on_event: Callable[[str, dict[str, Any]], None],
        token: str | None,
        describe: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._node_id = node_id
        self._clock = clock
        self._consumer = settings.nats.consumer
        self._heartbeat_interval_s = heartbeat_interval_s
        self._poll_interval_s = poll_interval_s
        self._task_types = task_types
        self._on_event = on_event
        self._describe = describe
        self._server = Server(settings.url, node_id, token, settings.ca_file, settings.connect_timeout_sec)
        self._wake: Wake = lambda: None
        self._notes = Notes(state_dir)
        self._link = KeptLink(
            self._connect,
            self._keep,
            clock=clock,
            backoff_max_s=settings.backoff_max_sec,
            retry=retry_on_disconnect,
            changed=self._changed,
            parted=self._part,
        )
        self._wire: Wire | None = None
        self._url = ""
        self._lease_s = 0.0
        self._max_deliver = 0
        self._availability = Availability.BUSY
        self._nudge = asyncio.Event()
        self._alarm = asyncio.Event()
        self._trouble: Trouble | None = None
        self._poll: asyncio.Task[None] | None = None
        self._enough = asyncio.Event()
        self._slot: Claim | None = None
        self._leases: dict[str, Lease] = {}  # every task that is not settled or given back: waiting, in hand, in the outbox
        self._held = asyncio.Event()
        self._renew_now = asyncio.Event()  # a link that was down has no time to lose
        self._outbox: list[Outcome] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._hurry = asyncio.Event()
        self._done: OrderedDict[str, None] = OrderedDict()
        self._giving: set[asyncio.Task[None]] = set()
        self._work: list[asyncio.Task[None]] = []
        self._stopping = False
        self.counts = {"done": 0, "failed": 0, "handed_back": 0, "second": 0}

    # --- the protocol

    async def start(self, wake: Wake) -> None:
        """Begin; the work goes on in tasks of its own. What a crash left needs nothing of us: its lease has lapsed, or will."""
        self._wake = wake
        left, trouble = await self._notes.load()
        if trouble:
            self._event("note-unreadable", reason=trouble)
        for noted in left:
            self._event("note-found", task=noted.id, type=noted.type, reason="its lease ends, and another node gets it")
            await self._unnote(noted.id)
        self._work = [asyncio.create_task(job) for job in (self._link.run(), self._renew(), self._deliver())]

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
                    self.hand_back(self._slot, "the node stopped", "resubmit")
                if self._giving:
                    await asyncio.wait(self._giving)
                if self._link.link is Link.UP:
                    self._hurry.set()
                    await self._emptied.wait()
                    await self._tell()
        except (TimeoutError, Trouble):
            pass
        finally:
            await end(*self._work, *self._giving, *([self._poll] if self._poll is not None else []))
            for outcome in self._outbox:
                self._event("undelivered", task=outcome.result.id, reason="the node stopped first; another node gets the task")
            await self._part()
            self._link.say(Link.DOWN, "stopped")

    def ask(self) -> bool:
        """Start one poll: what is there at once, else, in READY, what comes before the next poll is due."""
        full = len(self._outbox) >= MAX_WAITING or sum(len(o.body) for o in self._outbox) >= MAX_WAITING_BYTES
        if self._link.link is not Link.UP or self._stopping or full or self._poll is not None or self._slot is not None:
            return False
        self._enough.clear()
        self._poll = asyncio.create_task(self._ask(self._clock.now_s() + self._poll_interval_s - POLL_MARGIN_S))
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
        lease = self._leases.get(claim.id)
        if lease is None or any(outcome.lease is lease for outcome in self._outbox):
            self._event("outcome-ignored", task=claim.id, type=claim.type, reason="the task has an outcome already")
            return
        self._forget_waiting(claim)
        self.counts["done" if error is None else "failed"] += 1
        reason = None if error is None else clean.reason(error)
        self._outbox.append(Outcome(lease, Result(claim.id, claim.type, self._node_id, result, reason)))
        self._emptied.clear()
        self._filled.set()

    def hand_back(self, claim: Claim, reason: str, on_preempt: str) -> None:
        """Give it to the next node now; or, with on_preempt "fail", fail it."""
        self._forget_waiting(claim)
        if on_preempt == "fail":
            self.settle(claim, {}, f"preempted: {clean.reason(reason)}")
            return
        lease = self._leases.pop(claim.id, None)
        if lease is None:
            self._event("outcome-ignored", task=claim.id, type=claim.type, reason="the task has an outcome already")
            return
        self.counts["handed_back"] += 1
        self._giving.add(task := asyncio.create_task(self._give_back(lease, claim, clean.reason(reason))))
        task.add_done_callback(self._giving.discard)

    def announce(self, availability: Availability) -> None:
        """What the registry says; a change is told at once, and one that is no longer READY asks for nothing more."""
        if availability is self._availability or self._stopping:
            return
        self._availability = availability
        if availability is not Availability.ONLINE:
            self._enough.set()
        self._nudge.set()

    def resume(self) -> None:
        """Lift a link that was given up; cut short the wait for the next try."""
        self._link.resume()

    @property
    def crash_note(self) -> bool:
        """Never: the lease settles what a crash left."""
        return False

    @property
    def status(self) -> LinkStatus:
        """The link as it is."""
        link = self._link
        url = self._url or self._server.url
        waiting = len(self._outbox)
        return LinkStatus(
            link.link, link.since_s, link.reason, link.next_try_s, "jetstream", url, waiting, link.error, link.error_s
        )

    # --- the link

    async def _connect(self) -> None:
        self._trouble = None
        self._alarm.clear()
        self._wire = Wire(self._server, name=self._node_id, on_lost=lambda reason: self._fail(Trouble(reason)))
        await self._wire.open()
        self._url = self._wire.url
        try:
            settings = (await self._wire.api(f"CONSUMER.INFO.{layout.TASKS}.{self._consumer}"))["config"]
            self._lease_s, self._max_deliver = settings["ack_wait"] / 1e9, int(settings.get("max_deliver", -1))
        except Refused as missing:
            raise Trouble(f"{self._url} has no consumer {self._consumer}: {missing.reason}; see deploy/fleet") from None
        except (KeyError, TypeError, ValueError):
            raise Trouble(f"{self._url} describes its consumer {self._consumer} as none that is known") from None
        await self._tell()
        self._hurry.set()
        self._renew_now.set()

    async def _keep(self) -> None:
        """One interval, and a sign of life at its end; sooner when there is news or trouble."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._heartbeat_interval_s):
                await self._nudge.wait()
        self._nudge.clear()
        if self._trouble is not None:
            raise self._trouble
        await self._tell()
        with contextlib.suppress(TimeoutError):  # news come no faster than this, trouble does
            async with asyncio.timeout(PERMITTED_S):
                await self._alarm.wait()

    async def _tell(self) -> None:
        """Write what there is to know of this node into the registry."""
        known = {"node": self._node_id, "availability": self._availability, "types": sorted(self._task_types), **self.counts}
        body = entry(known, self._describe(), self._clock.wall_s())
        answer = await self._need().request(layout.node_subject(self._node_id), body)
        if b'"error"' in answer.data:
            raise Trouble(f"{self._url}: the registry of nodes does not take this node's entry; see deploy/fleet")

    async def _part(self) -> None:
        link, self._wire = self._wire, None
        self._enough.set()
        if link is not None:
            await link.close()

    def _need(self) -> Wire:
        if self._wire is None:
            raise Trouble("not connected", sent=False)
        return self._wire

    def _fail(self, trouble: Trouble) -> None:
        """Trouble met elsewhere: the link is down at once, and its task deals with it."""
        if self._link.link is Link.UP and not self._stopping:
            self._trouble = trouble
            self._link.say(Link.DOWN, trouble.reason)
            self._alarm.set()
            self._nudge.set()

    def _changed(self, link: Link, reason: str) -> None:
        self._event(link.value, reason=reason, url=self._url or self._server.url, dialect="jetstream")
        self._wake()

    # --- the poll

    async def _ask(self, until_s: float) -> None:
        try:
            delivery = await self._need().pull(
                layout.TASKS, self._consumer, linger_s=lambda: self._linger_s(until_s), enough=self._enough
            )
            if delivery is not None:
                await self._accept(delivery)
        except Trouble as trouble:
            self._fail(trouble)
        except Exception as error:  # noqa: BLE001  no fault of ours may end the poll in silence
            self._fail(Trouble(f"the poll failed ({type(error).__name__})"))
        finally:
            self._poll = None
            self._wake()

    def _linger_s(self, until_s: float) -> float:
        """Only in READY: elsewhere the answer is wanted at once."""
        return until_s - self._clock.now_s() if self._availability is Availability.ONLINE else 0.0

    async def _accept(self, delivery: Delivery) -> None:
        """Let a task be taken, or see to it that another node, or nobody, gets it."""
        link, now_s = self._need(), self._clock.now_s()
        try:
            claim = decode_task(delivery.data)
        except Poison as poison:
            await self._bury(delivery, str(poison), poison.task_id, "")
            return
        if claim.id in self._done:
            await link.word(delivery.reply, wire.ACK)
            self._event("claim-ignored", task=claim.id, type=claim.type, reason="its result is stored already")
            return
        if (lease := self._leases.get(claim.id)) is not None:
            # Our lease had lapsed; nobody else has the task, so it goes on here under the new one.
            lease.reply, lease.count, lease.lost, lease.ends_s = delivery.reply, delivery.count, False, now_s + self._lease_s
            self._event("claim-ignored", task=claim.id, type=claim.type, reason="this node has the task already")
            return
        if 0 < self._max_deliver <= delivery.count:
            reason = f"given up after {delivery.count} deliveries, the most that the fleet gives (max_deliver)"
            await self._bury(delivery, reason, claim.id, claim.type)
            return
        if claim.type not in self._task_types:
            await link.word(delivery.reply, UNFIT_DELAY)
            self._event("claim-passed-on", task=claim.id, type=claim.type, reason="this node does not run this type")
            return
        if delivery.count > 1:
            claim = await self._with_its_place(claim)
        self._leases[claim.id] = Lease(claim, delivery.reply, delivery.count, now_s + self._lease_s)
        self._held.set()
        try:
            await self._notes.put(Entry(claim.id, claim.type))
        except OSError as error:
            self._event("note-not-kept", task=claim.id, type=claim.type, reason=str(error))
        self._slot = claim

    async def _with_its_place(self, claim: Claim) -> Claim:
        """The task with what it had saved when it was given back. Without it, it begins anew, which is always right."""
        try:
            data = await self._need().last(layout.PLACES, layout.place_subject(claim.id))
            return claim if data is None else replace(claim, payload={**claim.payload, **decode_place(data)})
        except (Trouble, Poison):
            return claim

    async def _bury(self, delivery: Delivery, reason: str, task_id: str, kind: str) -> None:
        """Nobody can run it: keep it where an operator finds it, tell its submitter, and end it."""
        link, name = self._need(), task_id or f"sequence-{delivery.sequence}"
        headers = {layout.REASON_HEADER: reason}
        await link.store(layout.dead_subject(name), delivery.data, f"dead-{delivery.sequence}", headers)
        if task_id:
            failed = Result(task_id, kind, self._node_id, {}, f"dead: {reason}")
            with contextlib.suppress(Exists):
                await link.store(layout.result_subject(task_id), failed.encode(), f"{task_id}.dead")
        await link.word(delivery.reply, wire.TERM)
        self._event("dead-letter", task=name, type=kind, reason=reason)

    # --- the lease

    async def _renew(self) -> None:
        """Renew what is held, in time for two more tries; sleeps while nothing is held."""
        while True:
            await self._held.wait()
            self._renew_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, self._lease_s / RENEWALS)):
                    await self._renew_now.wait()
            leases = list(self._leases.values())
            if not leases:
                self._held.clear()
            await asyncio.gather(*(self._renew_one(lease) for lease in leases))

    async def _renew_one(self, lease: Lease) -> None:
        sent_s = self._clock.now_s()
        if sent_s >= lease.ends_s and not lease.lost:
            lease.lost = True
            reason = "it could not be renewed in time: another node may have the task as well"
            self._event("lease-lost", task=lease.claim.id, type=lease.claim.type, reason=reason)
        if lease.lost or self._link.link is not Link.UP:
            return  # one that has lapsed may be another node's by now
        try:
            await self._need().word(lease.reply, wire.IN_PROGRESS, timeout_s=self._lease_s / RENEWALS)
            lease.ends_s = sent_s + self._lease_s
        except Trouble as trouble:
            self._fail(trouble)

    async def _give_back(self, lease: Lease, claim: Claim, reason: str) -> None:
        """Now, while the lease is surely ours; else its end does the same, a little later. What is new in the payload is the
        place that the task has saved: it goes ahead, for the node that has the task next."""
        place = {key: value for key, value in claim.payload.items() if lease.claim.payload.get(key) != value}
        word = "handed-back"
        try:
            if lease.lost or self._clock.now_s() > lease.ends_s - LAST_MOMENT_S:
                raise Trouble("its lease has ended")
            if place:
                await self._save(claim, place, lease.count)
            await self._need().word(lease.reply, GIVE_BACK)
        except Trouble as trouble:
            word, reason = "handed-back-by-lease", f"{reason}; {trouble.reason}"
        self._event(word, task=claim.id, type=claim.type, reason=reason)
        await self._unnote(claim.id)

    async def _save(self, claim: Claim, place: Mapping[str, Any], count: int) -> None:
        body = await asyncio.to_thread(lambda: clean.encode(clean.mapping(place)))
        try:
            msg_id = f"{claim.id}.{layout.token(self._node_id)}.{count}"
            await self._need().store(layout.place_subject(claim.id), body, msg_id)
        except Trouble as trouble:
            self._event("place-lost", task=claim.id, type=claim.type, reason=f"it begins anew: {trouble.reason}")

    # --- the way back

    async def _deliver(self) -> None:
        """Deliver for ever, first in, first out."""
        failures = 0
        while True:
            await self._filled.wait()
            outcome = self._outbox[0]
            try:
                if self._link.link is not Link.UP and not self._stopping:
                    raise Trouble(self._link.reason)
                await self._deliver_one(outcome)
                failures = 0
            except Trouble as trouble:
                if isinstance(trouble, Refused) and self._replaced(outcome, trouble):
                    continue
                self._hurry.clear()
                self._fail(trouble)
                pause_s = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
                failures += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s if self._link.link is Link.UP or self._stopping else None):
                        await self._hurry.wait()
                continue
            except Exception as error:  # noqa: BLE001  one outcome must not hold up all others
                reason = f"it could not be delivered ({getattr(error, 'reason', type(error).__name__)})"
                self._event("outcome-lost", task=outcome.result.id, reason=f"{reason}; another node gets the task")
            self._outbox.pop(0)
            self._leases.pop(outcome.result.id, None)
            await self._unnote(outcome.result.id)
            if not self._outbox:
                self._filled.clear()
                self._emptied.set()

    async def _deliver_one(self, outcome: Outcome) -> None:
        """Store the result, then acknowledge the task: a node that dies between the two has it acknowledged by the next."""
        link, result, lease = self._need(), outcome.result, outcome.lease
        if not outcome.body:
            outcome.body = await asyncio.to_thread(result.encode)
        if len(outcome.body) > link.max_payload:
            error = f"result too large: {len(outcome.body) / 2**20:.2f} MiB, the fleet takes {link.max_payload / 2**20:.2f} MiB"
            outcome.result = result = Result(result.id, result.type, result.node, {}, error)
            outcome.body = result.encode()
        first = True
        try:
            # the message id holds the node: what this node sends again is the same, what another sends is a second one
            await link.store(layout.result_subject(result.id), outcome.body, f"{result.id}.{layout.token(self._node_id)}")
        except Exists:
            first = False
        await link.word(lease.reply, wire.ACK)
        self._done[result.id] = None
        while len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
        if first:
            self._event("delivered", task=result.id, type=result.type, error=result.error is not None)
            return
        self.counts["second"] += 1
        reason = "another node's result was first, and stands; this one is dropped"
        self._event("done-twice", task=result.id, type=result.type, reason=reason)

    def _replaced(self, outcome: Outcome, refused: Refused) -> bool:
        """The fleet says no to this result for good: its reason is the outcome then. False: it was just that."""
        result, error = outcome.result, f"the fleet refused the result: {refused.reason}"
        if result.error == error:
            return False
        self._event("outcome-refused", task=result.id, type=result.type, reason=refused.reason)
        outcome.result, outcome.body = Result(result.id, result.type, result.node, {}, error), b""
        return True

    def _forget_waiting(self, claim: Claim) -> None:
        if self._slot is not None and self._slot.id == claim.id:
            self._slot = None

    async def _unnote(self, task_id: str) -> None:
        try:
            await self._notes.remove(task_id)
        except OSError as error:
            self._event("note-not-kept", task=task_id, reason=str(error))

    def _event(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(Exception):  # a journal that fails must not end the link
            self._on_event(EVENT_KIND, {"event": event, **fields})
