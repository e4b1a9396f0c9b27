"""A fleet's queue on NATS JetStream as a source of tasks.

A claim is a delivery with a lease: `ack_wait` of the consumer. It is renewed while the node has the task. A node that dies or
loses its network loses the lease, and another node gets the task. A task that is given back goes on at once.

A result is stored first, then the task is acknowledged. Only the first result of a task is stored, so it is known when a task
was done twice (once on each side of a cut network): the server and the journals of both nodes say it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final

from states.ending import Ending, failed
from states.observation import Link
from supervisor.linux import wake
from supervisor.linux.bounded import end
from supervisor.linux.clock import Clock
from supervisor.linux.text import error_text
from supervisor.sources import sanitize
from supervisor.sources.base import (
    FAIL,
    RESUBMIT,
    STATE_KEY,
    Availability,
    Claim,
    Source,
    SourceEvents,
    SourceSettings,
)
from supervisor.sources.desired import MAX_LINES, BadOrder, read_order
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import InFlightTask
from supervisor.sources.lost_attempts import GIVEN_UP, MAX_LOST, lost_in, read_count, with_count
from supervisor.sources.nats import subjects
from supervisor.sources.nats.connection import ACK, TERM, Connection, Server, nak
from supervisor.sources.nats.errors import Delivery, Exists, Message, Refused
from supervisor.sources.nats.leases import Lease, Leases
from supervisor.sources.nats.messages import Poison, Result, decode_saved, decode_task
from supervisor.sources.nats.registry import entry
from supervisor.sources.nats.results import Outcome, ResultOutbox
from supervisor.sources.network_source import NetworkSource
from supervisor.sources.sanitize import decode

PASS_ON_S: Final = 2  # until a task that this node does not run is handed out again; twice as long each time,
PASS_ON_SOON: Final = 5  # once it was handed out so often,
PASS_ON_MAX_S: Final = 300  # up to this
FOREVER_S: Final = 1e9  # no lease lasts so long
MAX_ANSWERS: Final = 4  # to the operator, at a time
POLL_MARGIN_S: Final = 0.05  # a lingering poll ends before the next one is due


class NatsSource(NetworkSource):
    """A `Source`."""

    _pace_s = 1.0  # between two entries in the registry
    _undelivered_reason = "the node stopped first; another node gets the task"
    _dialect = "jetstream"
    _outbox: ResultOutbox

    def __init__(self, settings: SourceSettings, clock: Clock, events: SourceEvents) -> None:
        super().__init__(settings, clock, events)
        self._events = events
        self._node_id = settings.node_id
        control = settings.control
        self._consumer = control.nats.consumer
        server = Server(control.url, self._node_id, ca_file=control.ca_file)
        self._connection = Connection(server, name=self._node_id, on_lost=self._link.fail)
        self._max_deliver = 0
        self._stop_poll = asyncio.Event()
        self._until_s = 0.0
        self._leases = Leases(clock, self._connection, self._link, self._log)
        self._outbox = ResultOutbox(self._connection, self._leases, self._link, self._record, self._log)
        self._hand_backs: set[asyncio.Task[None]] = set()
        self._answers: set[asyncio.Task[None]] = set()
        self._lost: dict[str, InFlightTask] = {}  # tasks whose attempt ended with this node; the fleet does not know it yet
        self.counts = {"done": 0, "failed": 0, "handed_back": 0}

    # --- the protocol

    def ask(self) -> bool:
        """Start one poll: a task that is there at once; in READY also one that comes before the next poll is due."""
        if not self._may_ask():
            return False
        self._stop_poll.clear()
        self._until_s = self._clock.now_s() + self._settings.poll_interval_s - POLL_MARGIN_S
        return super().ask()

    def settle(self, claim: Claim, ending: Ending) -> None:
        lease = self._without_outcome(claim)
        if lease is None:
            return
        self.counts["done" if ending.error is None else "failed"] += 1
        error = None if ending.error is None else sanitize.reason(ending.error)
        self._outbox.put(Outcome(lease, Result(claim.id, claim.type, self._node_id, ending.result, error)))

    def hand_back(self, claim: Claim, ending: Ending, on_preempt: str) -> None:
        """Give it to the next node now; with FAIL, fail it."""
        reason = sanitize.reason(ending.error)
        if on_preempt == FAIL:
            self.settle(claim, failed(f"preempted: {reason}"))
            return
        lease = self._without_outcome(claim)
        if lease is None:
            return
        self._leases.pop(claim.id)
        self.counts["handed_back"] += 1
        self._hand_backs.add(task := asyncio.create_task(self._give_back(lease, claim, ending.saved_state, reason)))
        task.add_done_callback(self._hand_backs.discard)

    def announce(self, availability: Availability) -> None:
        """See Source; a node that is no longer READY waits for no more work."""
        if availability is not self._availability and availability is not Availability.ONLINE:
            self._stop_poll.set()
        super().announce(availability)

    def _without_outcome(self, claim: Claim) -> Lease | None:
        """The lease of a task that gets its outcome now; None if it has one already."""
        self._no_longer_waits(claim.id)
        lease = None if claim.id in self._outbox else self._leases.get(claim.id)
        if lease is None:
            self._log("outcome-ignored", claim, reason="the task has an outcome already")
        return lease

    # --- start and stop

    async def take_over(self, old: Source) -> None:
        """See Source. The leases are this node's own, by whichever way it reaches the fleet."""
        if not isinstance(old, NatsSource) or old._node_id != self._node_id:
            return
        await end(*old._work[1:2])  # its outbox's worker
        self._outbox.take(old._outbox)
        self._leases.take(old._leases, [item.id for item in self._outbox])
        self.counts, self._lost_polls, self._lost_poll_s = old.counts, old._lost_polls, old._lost_poll_s

    async def _recover(self, task: InFlightTask) -> None:
        """The lease has lapsed, or it will soon. The next node must know of a lost attempt."""
        self._log("note-found", task, reason="its lease ends, and another node gets it")
        if task.lost:
            self._lost[task.id] = task
        else:
            await self._outbox.forget(task.id)

    async def _report_lost(self) -> None:
        """Store the count of lost attempts beside what each task has saved. What fails is tried with the next link."""
        for task in list(self._lost.values()):
            try:
                data = await self._connection.last(subjects.PLACES, subjects.place_subject(task.id), lease=task.lease)
                saved = {} if data is None else decode_saved(data)
                lost = max(task.lost, lost_in(saved) + 1)
                msg_id = f"{task.id}.{subjects.token(self._node_id)}.lost.{task.lost}"  # counted once, if it is sent twice
                body = await asyncio.to_thread(sanitize.encode, with_count(saved, lost))
                await self._connection.store(subjects.place_subject(task.id), body, msg_id, lease=task.lease)
            except (RequestError, Poison) as error:
                self._log("lost-not-told", task, reason=str(error))
                continue
            if self._lost.pop(task.id, None) is not None:
                await self._outbox.forget(task.id)

    def _jobs(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return (self._leases.run(),)

    async def _finish(self, deadline_s: float) -> None:
        self._stop_poll.set()
        await self._give_back_untaken(on_preempt=RESUBMIT)
        if self._hand_backs:
            await asyncio.wait(self._hand_backs)
        if self._link.up:
            await asyncio.gather(self._outbox.deliver_all(), self._beat(), return_exceptions=True)

    async def _end(self) -> None:
        await end(*self._hand_backs, *self._answers)
        await super()._end()

    # --- the link

    @property
    def _url(self) -> str:
        return self._connection.url

    async def _connect(self) -> None:
        self._connection.use_password(await self._settings.key())
        await self._connection.open()
        try:
            info = await self._connection.api(f"CONSUMER.INFO.{subjects.TASKS}.{self._consumer}")
            settings = info["config"]
            if settings["ack_policy"] != "explicit":
                reason = f"{self._url}: its consumer {self._consumer} gives no leases (ack_policy: explicit is expected)"
                raise RequestError(f"{reason}; see deploy/fleet")
            length_s, max_deliver = settings["ack_wait"] / 1e9, int(settings.get("max_deliver", -1))
            if not 0 < length_s < FOREVER_S:
                raise ValueError
            self._leases.length_s, self._max_deliver = length_s, max_deliver
        except Refused as missing:
            reason = f"{self._url} has no consumer {self._consumer}: {missing.reason}; see deploy/fleet"
            raise RequestError(reason) from None
        except (KeyError, TypeError, ValueError, OverflowError):
            raise RequestError(f"{self._url} describes its consumer {self._consumer} in an unknown form") from None
        await self._hear_operator()
        self._beside(self._say_how_to_wake())
        await self._report_lost()
        await self._beat()
        self._leases.renew_now()

    async def _hear_operator(self) -> None:
        """Obey the operator's last order, and each one from now on."""
        subject = subjects.desired_subject(self._node_id)
        await self._connection.listen(subject, lambda message: self._obey(message.data))
        await self._connection.listen(subjects.ask_subject(self._node_id, "*"), self._asked)
        if (data := await self._connection.last(subjects.DESIRED_STREAM, subject)) is not None:
            self._obey(data)

    def _obey(self, data: bytes) -> None:
        try:
            self._events.obey(read_order(data, self._clock.wall_s()))
        except BadOrder as bad:
            self._log("order-refused", reason=f"what the fleet's operator asks for cannot be read: {bad}")

    def _asked(self, message: Message) -> None:
        """The operator asks something; of many questions at once most get no answer."""
        if len(self._answers) < MAX_ANSWERS:
            self._beside(self._answer(message))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        self._answers.add(task := asyncio.create_task(work))
        task.add_done_callback(self._answers.discard)

    async def _say_how_to_wake(self) -> None:
        """Write this machine's cards where they stay while it sleeps; none, where it does not want to be woken."""
        cards = await asyncio.to_thread(wake.addresses) if self._settings.wake else []
        known = {"node": self._node_id, "types": sorted(self._settings.on_preempt), "cards": cards}
        with contextlib.suppress(RequestError):  # a fleet of an earlier version has no place for it
            await self._connection.request(subjects.wake_subject(self._node_id), sanitize.encode(known))

    async def _answer(self, message: Message) -> None:
        question = message.subject.rpartition(".")[2]
        try:
            asked = decode(message.data) if message.data else {}
            if question == "wake":
                answer = await self._wake_other(str(asked["mac"]), str(asked["network"]))
            else:
                lines = min(MAX_LINES, max(1, int(asked.get("lines", 1))))
                answer = dict(await self._events.answer(question, lines))
        except OSError as error:
            answer = _error(error_text(error))
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError):
            answer = _error("the question cannot be read")
        with contextlib.suppress(RequestError):  # the operator's own time limit ends the wait
            await self._connection.send(Message(message.reply, "", sanitize.encode(answer), {}))

    async def _wake_other(self, mac: str, network: str) -> dict[str, Any]:
        """Send the packet that wakes another machine in a network of this one."""
        if not self._settings.wake:
            return _error("work.wake is off there")
        sent = await asyncio.to_thread(wake.send, mac, network)
        self._log("woke", reason=f"the packet for {mac} was sent to {network}" if sent else f"not in {network}")
        return {"sent": sent}

    async def _beat(self) -> None:
        """Write this node's entry into the registry."""
        known = {
            "node": self._node_id,
            "availability": self._availability,
            "types": sorted(self._settings.on_preempt),
            **self.counts,
            "second": self._outbox.second,
            "lost_polls": self._lost_polls,
        }
        body = entry(known, self._events.describe(), self._clock.wall_s())
        answer = await self._connection.request(subjects.node_subject(self._node_id), body)
        if b'"error"' in answer.data:
            raise RequestError(f"{self._url}: the registry of nodes does not take this node's entry; see deploy/fleet")

    async def _close(self) -> None:
        self._stop_poll.set()
        await self._connection.close()

    def _changed(self, link: Link, reason: str) -> None:
        if link is Link.UP:
            self._outbox.open()
        else:
            self._outbox.close()
        super()._changed(link, reason)

    # --- the poll

    async def _poll_once(self) -> None:
        try:
            delivery = await self._connection.pull(
                subjects.TASKS, self._consumer, linger_s=self._linger_s, stop=self._stop_poll
            )
        except RequestError as error:
            if error.sent and not isinstance(error, Refused):
                self._poll_lost(error.reason)
            raise
        if delivery is not None:
            await self._accept(delivery)
        elif not self._connection.up and not self._link.stopping:
            self._poll_lost("the connection was lost before an answer came")

    def _linger_s(self) -> float:
        """The poll waits only in READY: elsewhere the answer is wanted at once."""
        return self._until_s - self._clock.now_s() if self._availability is Availability.ONLINE else 0.0

    async def _accept(self, delivery: Delivery) -> None:
        """Let a task be taken; or pass it on to another node; or end it if no node can run it."""
        try:
            claim = decode_task(delivery.data)
        except Poison as poison:
            await self._dead_letter(delivery, str(poison), poison.task_id, "")
            return
        if self._outbox.stored(claim.id):
            await self._connection.acknowledge(delivery.reply, ACK)
            self._log("claim-ignored", claim, reason="its result is stored already")
            return
        if (lease := self._leases.get(claim.id)) is not None:
            self._leases.redelivered(lease, delivery)
            self._log("claim-ignored", claim, reason="this node has the task already")
            return
        if 0 < self._max_deliver <= delivery.count:
            reason = f"given up after {delivery.count} deliveries, the most that the fleet gives (max_deliver)"
            await self._dead_letter(delivery, reason, claim.id, claim.type)
            return
        if claim.type not in self._settings.on_preempt:
            await self._connection.acknowledge(delivery.reply, pass_on(delivery.count))
            self._log("claim-passed-on", claim, reason="this node does not run this type")
            return
        lease = self._leases.begin(claim, delivery)
        if delivery.count > 1:
            claim = await self._with_saved(claim, delivery.reply)
        lease.claim = claim = self._with_lost(read_count(claim))
        if claim.lost >= MAX_LOST:
            self._log("given-up", claim, reason=GIVEN_UP)
            self.settle(claim, failed(GIVEN_UP))
            return
        try:
            await self._record.put(InFlightTask(claim.id, claim.type, lost=claim.lost, lease=delivery.reply))
        except OSError as error:
            self._log("note-not-kept", claim, reason=str(error))
        self._claim = claim

    def _with_lost(self, claim: Claim) -> Claim:
        """The task with this node's own count, if the fleet did not take that."""
        left = self._lost.pop(claim.id, None)
        return claim if left is None else replace(claim, lost=max(claim.lost, left.lost))

    async def _with_saved(self, claim: Claim, lease: str) -> Claim:
        """The task with what it had saved when it was given back. Without it, it starts from the beginning: always right."""
        try:
            data = await self._connection.last(subjects.PLACES, subjects.place_subject(claim.id), lease=lease)
            return claim if data is None else replace(claim, payload={**claim.payload, **decode_saved(data)})
        except (RequestError, Poison):
            return claim

    async def _dead_letter(self, delivery: Delivery, reason: str, task_id: str, task_type: str) -> None:
        """No node can run it: keep it where an operator finds it, report it to its submitter, and end it."""
        name = task_id or f"sequence-{delivery.sequence}"
        subject, msg_id = subjects.dead_subject(name), f"dead-{delivery.sequence}"
        try:
            why = {subjects.REASON_HEADER: reason}
            await self._connection.store(subject, delivery.data, msg_id, why, lease=delivery.reply)
        except Refused as refused:  # in the queue it would fail each node's poll: keep it without its content
            reason = f"{reason}; its content is not kept: {refused.reason}"
            await self._connection.store(subject, b"", msg_id, {subjects.REASON_HEADER: reason}, lease=delivery.reply)
        if task_id:
            result = Result(task_id, task_type, self._node_id, {}, f"dead: {reason}")
            with contextlib.suppress(Exists):
                subject, msg_id = subjects.result_subject(task_id), f"{task_id}.dead"
                await self._connection.store(subject, result.encode(), msg_id, lease=delivery.reply)
        await self._connection.acknowledge(delivery.reply, TERM)
        self._log("dead-letter", task=name, type=task_type, reason=reason)

    # --- the way back

    async def _give_back(self, lease: Lease, claim: Claim, saved: Any, reason: str) -> None:
        """Now, while the lease is surely ours; otherwise its end does the same, a little later. What the task has saved, and
        the attempts that it has lost, are stored first, for its next node."""
        event, kept = "handed-back", claim.payload.get(STATE_KEY)
        saved = kept if saved is None else saved
        try:
            self._check_ours(lease)
            if saved != kept or claim.lost > lease.claim.lost:
                await self._save(claim, saved, lease)
                self._check_ours(lease)
            await self._connection.acknowledge(lease.reply, nak())
        except Exception as error:  # noqa: BLE001  the end of the lease does the same
            why = error.reason if isinstance(error, RequestError) else f"it failed ({type(error).__name__})"
            event, reason = "handed-back-by-lease", f"{reason}; {why}"
        self._log(event, claim, reason=reason)
        await self._outbox.forget(claim.id)

    def _check_ours(self, lease: Lease) -> None:
        """A lapsed lease may be another node's by now: giving it back would take the task from that node."""
        if not self._leases.surely_ours(lease):
            raise RequestError("its lease has ended")

    async def _save(self, claim: Claim, saved: Any, lease: Lease) -> None:
        body = await asyncio.to_thread(sanitize.encode, with_count({} if saved is None else {STATE_KEY: saved}, claim.lost))
        try:
            msg_id = f"{claim.id}.{subjects.token(self._node_id)}.{lease.count}"
            await self._connection.store(subjects.place_subject(claim.id), body, msg_id, lease=lease.reply)
        except RequestError as error:
            self._log("place-lost", claim, reason=f"it starts from the beginning: {error.reason}")


def pass_on(count: int) -> bytes:
    """Passes on a task that this node does not run, handed out for the `count`th time.

    The fleet hands each task out a limited number of times (max_deliver): these must last until a node that runs it is free.
    """
    return nak(min(PASS_ON_S << min(max(0, count - PASS_ON_SOON), 10), PASS_ON_MAX_S))


def _error(text: str) -> dict[str, Any]:
    """An answer that says why there is none, in JetStream's form."""
    return {"error": {"code": 400, "description": text}}
