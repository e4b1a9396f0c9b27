"""From a RAE control node to a fleet and back: submitters see the same API, and their tasks get leases.

A task is recorded (id and type, nothing else) before it is queued, until the control node has its result. The fleet keeps the
payload and the result. A bridge that was killed asks both sides what is missing, and goes on.

The control node hands out tasks of all types, to any node that asks. One that no node of the fleet runs is set aside until
a node does; its payload stays at the control node. It takes no place of those that can run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type

from states.observation import Link
from supervisor.linux.bounded import end, wait_for_event
from supervisor.linux.clock import Clock, SystemClock, iso
from supervisor.linux.text import one_line
from supervisor.sources.backoff import backoff_s
from supervisor.sources.base import Availability, Claim, SourceSettings
from supervisor.sources.errors import RequestError
from supervisor.sources.events import EventLog
from supervisor.sources.in_flight import InFlightRecord, InFlightTask
from supervisor.sources.link import RetryingLink, Work, nothing
from supervisor.sources.nats import registry, subjects
from supervisor.sources.nats.connection import ACK, Connection, Server
from supervisor.sources.nats.errors import Delivery, Exists, Refused
from supervisor.sources.nats.messages import Poison, Result, decode_result, encode_task, is_type, no_result, stored_result
from supervisor.sources.rae.api import NotFound, RaeApi, TaskTooLarge, UnknownPath
from supervisor.sources.rae.outbox import Item, ResultPoster, is_final
from supervisor.sources.rae.transport import Transport

if TYPE_CHECKING:
    from supervisor.config.load import Config

T = TypeVar("T")

LINGER_S: Final = 20.0
AGAIN_S: Final = 1.0  # between tries to read results
LAST_S: Final = 3.0
PROCESSING: Final = "PROCESSING"
MAX_ASIDE: Final = 2000  # tasks that no node runs
LOOK_S: Final = 2.0  # between looks at what the nodes run
BEAT_S: Final = 30.0
NO_TASK: Final = "it is no task"


class Bridge:
    """Both links, and the tasks between them. `settings` are the control node's side; `say(line)` is for people."""

    def __init__(
        self, settings: SourceSettings, server: Server, *, clock: Clock, ahead: int, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._ahead = ahead
        self._say = say
        self._transport = Transport(settings.control, clock, settings.token)
        self._api = RaeApi(self._transport, settings)
        self._poster = ResultPoster(self._api, EventLog(self._event))
        self._record = InFlightRecord(settings.state_dir)
        self._not_yet = ""
        self.pending: dict[str, str] = {}  # id → type: taken from the control node, which has no result yet
        self.aside: dict[str, dict[str, None]] = {}  # type → ids of its tasks: no node of the fleet runs it
        self._aside_since: dict[str, float] = {}  # type → seconds of the wall clock
        self._aside_changed = asyncio.Event()
        self._clock = clock
        self._types: frozenset[str] = frozenset()
        self._looked_s = float("-inf")
        self._link_changed = asyncio.Event()

        def link(name: str, connect: Work, keep: Work, close: Work) -> RetryingLink:
            def changed(link: Link, reason: str) -> None:
                self._link_changed.set()
                say(f"{name}: {link.value}" + (f": {reason}" if reason else ""))

            return RetryingLink(connect, keep, close, clock=clock, retry=True, changed=changed)

        self.control = link("control node", self._register, self._heartbeat, nothing)
        self.fleet = link("fleet", self._open, self._until_lost, self._close)
        self._connection = Connection(server, name="rae-node bridge", on_lost=self.fleet.fail)

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; then reports OFFLINE, and leaves what is on the way to the next start."""
        left, problem = await self._record.load()
        if problem:
            self._say(problem)
        jobs = [self.control.run(), self.fleet.run(), self._forward_results(), self._forward_tasks(left)]
        jobs += [self._take_up(), self._beat()]
        work: list[asyncio.Task[Any]] = [asyncio.create_task(job) for job in jobs]
        work.append(asyncio.create_task(stop.wait()))
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a fault of our own ends the bridge with a message
        finally:
            await end(*work)
            with contextlib.suppress(RequestError, TimeoutError):
                async with asyncio.timeout(LAST_S):
                    await self._api.heartbeat(Availability.OFFLINE)
            await self._transport.close()

    def _event(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "outcome-lost":
            self._say(f"{fields['task']}: the control node does not take its outcome: {fields['reason']}")

    # --- the links

    async def _register(self) -> None:
        await self._api.introduce(self._availability)

    async def _heartbeat(self) -> None:
        await self.control.rest(self._settings.heartbeat_interval_s)
        try:
            await self._api.heartbeat(self._availability)
        except (NotFound, UnknownPath):
            await self._register()

    @property
    def _availability(self) -> Availability:
        welcome = self.fleet.up and self._runnable < self._ahead
        return Availability.ONLINE if welcome else Availability.BUSY

    @property
    def _runnable(self) -> int:
        """Tasks on the way that a node runs."""
        return len(self.pending) - sum(map(len, self.aside.values()))

    async def _open(self) -> None:
        self._looked_s = float("-inf")
        await self._connection.open()
        try:
            await self._connection.api(f"CONSUMER.INFO.{subjects.RESULTS}.{subjects.BRIDGE}")
        except Refused as missing:
            reason = f"{self._connection.url} has no consumer {subjects.BRIDGE}: {missing.reason}; see deploy/fleet"
            raise RequestError(reason) from None

    async def _until_lost(self) -> None:
        await self.fleet.rest(None)

    async def _close(self) -> None:
        await self._connection.close()

    async def _both_up(self) -> None:
        while not (self.control.up and self.fleet.up):
            self._link_changed.clear()
            await self._link_changed.wait()

    # --- from the control node to the fleet

    async def _forward_tasks(self, left: tuple[InFlightTask, ...]) -> None:
        for noted in left:
            self.pending[noted.id] = noted.type
        for noted in left:
            await self._retry(lambda noted=noted: self._recover(noted))  # type: ignore[misc]
        while True:
            await self._both_up()
            task = None
            if self._runnable < self._ahead:
                try:
                    task = await self._api.poll()
                except TaskTooLarge as large:
                    await self._fail(large.task_id, f"refused: {large.reason}")
                    continue
                except RequestError as error:
                    self._say(f"poll: {error.reason}" + ("; a task may be lost with that answer" if error.sent else ""))
            if task is None:
                await asyncio.sleep(self._settings.poll_interval_s)
                continue
            await self._forward_task(task)

    async def _forward_task(self, task: Mapping[str, Any]) -> None:
        """Record the task, then queue it, however long that takes: the control node does not hand it out again."""
        claim = _claim(task)
        if claim is None:
            await self._fail(str(task["id"]).lower(), f"refused: {NO_TASK}")
            return
        self.pending[claim.id] = claim.type
        if sum(map(len, self.aside.values())) >= MAX_ASIDE and claim.type not in self._types:
            await self._fail(claim.id, f"no node of the fleet runs {claim.type}, and {MAX_ASIDE} tasks like it wait already")
            return
        try:
            await self._record.put(InFlightTask(claim.id, claim.type, over=True))  # it runs elsewhere
        except OSError as error:
            self._say(f"{claim.id}: could not be noted, a crash now would lose it: {error}")
        await self._retry(lambda: self._queue(claim))

    async def _queue(self, claim: Claim) -> None:
        if claim.type not in await self._look():
            self._set_aside(claim)
            return
        if await self._post_stored(claim.id):  # it was handed out again, while its result waited
            return
        try:
            await self._connection.store(subjects.task_subject(claim.type, claim.id), encode_task(claim), claim.id)
        except Exists:
            pass
        except Refused as refused:
            await self._fail(claim.id, f"the fleet does not take this task: {refused.reason}")
            return
        self._say(f"{claim.id}: queued")

    # --- tasks that no node runs

    async def _look(self) -> frozenset[str]:
        """The types that a node runs which is there now."""
        if self._clock.now_s() >= self._looked_s + LOOK_S:
            nodes = registry.read(await self._connection.last_of_each(subjects.NODES_STREAM))
            there = (node for node in nodes if node["availability"] != Availability.OFFLINE)
            self._types, self._looked_s = frozenset(kind for node in there for kind in node["types"]), self._clock.now_s()
        return self._types

    def _set_aside(self, claim: Claim) -> None:
        if claim.type not in self.aside:
            self._aside_since[claim.type] = self._clock.wall_s()
            self._aside_changed.set()
            self._say(f"{one_line(claim.type, 80)}: no node of the fleet runs it; its tasks wait")
        self.aside.setdefault(claim.type, {})[claim.id] = None

    async def _take_up(self) -> None:
        """Queue what was set aside as soon as a node runs it."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self.aside:
                continue
            await self._both_up()
            with contextlib.suppress(RequestError):
                for kind in self.aside.keys() & await self._look():
                    self._say(f"{one_line(kind, 80)}: a node of the fleet runs it now")
                    self._aside_since.pop(kind, None)
                    self._aside_changed.set()
                    for noted in [InFlightTask(task_id, kind) for task_id in self.aside.pop(kind)]:
                        await self._retry(lambda noted=noted: self._recover(noted))  # type: ignore[misc]

    async def _beat(self) -> None:
        """Write into the registry what the bridge does; an operator sees it beside the nodes."""
        while True:
            await self._both_up()
            kinds = sorted(self.aside, key=lambda kind: -len(self.aside[kind]))
            waits = [
                f"{one_line(kind, 40)} ({len(self.aside[kind])} since {iso(self._aside_since[kind])})" for kind in kinds[:5]
            ]
            more = f" and {len(kinds) - 5} more types" if len(kinds) > 5 else ""
            reason = f"no node runs: {', '.join(waits)}{more}" if waits else ""
            known = {"node": subjects.BRIDGE, "availability": self._availability, "types": []}
            body = registry.entry(known, {"state": registry.BRIDGE}, self._clock.wall_s(), reason)
            with contextlib.suppress(RequestError):
                await self._connection.request(subjects.node_subject(subjects.BRIDGE), body)
            self._aside_changed.clear()
            await wait_for_event(self._aside_changed, BEAT_S)

    async def _recover(self, noted: InFlightTask) -> None:
        """A task that was on the way when the bridge ended: post its result, or make sure that it is queued."""
        task: Mapping[str, Any] | None
        try:
            task = await self._api.task(noted.id)
        except NotFound:
            task = {}
        except TaskTooLarge as large:
            task = {"status": large.state or PROCESSING}
        except RequestError as error:
            if not is_final(error):
                raise
            task = None
        if task is not None and task.get("status") != PROCESSING:
            await self._forget(noted.id)
        elif not await self._post_stored(noted.id) and task is not None:
            if claim := _claim({**task, "id": noted.id}):
                await self._queue(claim)
                return
            shown = isinstance(task.get("payload"), dict)
            why = f"refused: {NO_TASK}" if shown else "lost: the control node does not show the task any more"
            await self._fail(noted.id, why)

    async def _post_stored(self, task_id: str) -> bool:
        """Whether the fleet has the task's result already; then it is posted."""
        data = await self._connection.last(subjects.RESULTS, subjects.result_subject(task_id))
        if data is None:
            return False
        await self._post(stored_result(data, task_id))
        return True

    # --- from the fleet to the control node

    async def _forward_results(self) -> None:
        while True:
            try:
                delivery = await self._connection.pull(subjects.RESULTS, subjects.BRIDGE, linger_s=lambda: LINGER_S)
                if delivery is not None:
                    await self._deliver(delivery)
            except RequestError as error:
                self.fleet.fail(error)
                await asyncio.sleep(AGAIN_S)

    async def _deliver(self, delivery: Delivery) -> None:
        """Post a result that is for the control node, and only then acknowledge it to the fleet."""
        try:
            result = decode_result(delivery.data)
        except Poison as poison:
            result = no_result(poison.task_id, str(poison))
        if result.id in self.pending:
            await self._post(result)
        await self._connection.acknowledge(delivery.reply, ACK)

    async def _fail(self, task_id: str, error: str) -> None:
        await self._post(Result(task_id, "", "", {}, error))

    async def _post(self, result: Result) -> None:
        """Post the result however long that takes, then forget the task."""
        item = Item.settled(result.id, result.type, result.result, result.error)
        if await self._retry(lambda: self._poster.post(item)):
            self._say(f"{result.id}: {'COMPLETED' if item.error is None else 'FAILED'}, by {result.node or 'nobody'}")
        await self._forget(result.id)

    async def _forget(self, task_id: str) -> None:
        kind = self.pending.pop(task_id, None)
        if kind in self.aside:
            self.aside[kind].pop(task_id, None)
            if not self.aside[kind]:
                del self.aside[kind], self._aside_since[kind]
                self._aside_changed.set()
        if task_id not in self._record:
            return
        try:
            await self._record.remove(task_id)
        except OSError as error:
            self._say(f"{task_id}: its note could not be removed: {error}")

    async def _retry(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try while both links are up, until it succeeds; each wait is longer."""

        async def when_up() -> T:
            await self._both_up()
            try:
                return await work()
            except RequestError as error:
                if error.reason != self._not_yet:
                    self._not_yet = error.reason
                    self._say(f"not yet: {error.reason}")
                raise

        retrying = AsyncRetrying(retry=retry_if_exception_type(RequestError), wait=backoff_s, sleep=asyncio.sleep)
        return await retrying(when_up)


def _claim(task: Mapping[str, Any]) -> Claim | None:
    """What the control node shows as a task; None: it cannot be a task of a fleet."""
    task_type, payload, priority = task.get("type"), task.get("payload"), task.get("priority")
    if not is_type(task_type) or not isinstance(payload, dict):
        return None
    return Claim(str(task["id"]).lower(), task_type, payload, priority if type(priority) is int else 0)


def main(config: Config, server: Server, ahead: int) -> int:
    """`rae-node bridge`, until SIGTERM or SIGINT; the exit status."""
    from supervisor.sources.api_key import TokenError, token

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    try:
        key = token(config.control, os.environ)
    except TokenError as error:
        say(str(error))
        return 2
    settings = SourceSettings(
        control=config.control,
        node_id=config.node_id,
        state_dir=config.paths.state / "bridge",
        heartbeat_interval_s=config.runtime.execution.heartbeat_interval_sec,
        poll_interval_s=config.runtime.execution.poll_interval_sec,
        retry_on_disconnect=True,
        on_preempt={},
        capabilities={"gpu": True, "fleet": True},
        token=key,
    )

    async def until_stopped() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Bridge(settings, server, clock=SystemClock(), ahead=ahead, say=say).run(stop)

    try:
        asyncio.run(until_stopped())
    except Exception as error:  # noqa: BLE001  no traceback reaches a user
        say(f"the bridge ended by a fault of its own ({type(error).__name__}); started again, it goes on where it was")
        return 1
    return 0
