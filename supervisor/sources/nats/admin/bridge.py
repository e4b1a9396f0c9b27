"""From a RAE control node to a fleet and back (R2, R21): its submitters see the same API, its tasks get leases.

A task is noted (id and type, nothing else) before it is queued, and until the control node has its result. The fleet keeps
the payload and the result; a bridge that was killed asks both sides what is missing and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tenacity import AsyncRetrying, retry_if_exception_type

from states.observation import Link
from supervisor.linux.bounded import end
from supervisor.linux.clock import Clock, SystemClock
from supervisor.sources import sanitize as clean
from supervisor.sources.backoff import Backoff
from supervisor.sources.base import Availability, Claim
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import InFlightRecord, InFlightTask
from supervisor.sources.link import RetryingLink
from supervisor.sources.nats import connection as wire
from supervisor.sources.nats import subjects as layout
from supervisor.sources.nats.connection import Connection, Server
from supervisor.sources.nats.errors import Delivery, Exists, Refused
from supervisor.sources.nats.messages import Poison, Result, decode_result, encode_task, is_type, no_result, stored_result
from supervisor.sources.rae.api import NotFound, RaeApi, TaskTooLarge, UnknownPath
from supervisor.sources.rae.outbox import REFUSALS, lasting
from supervisor.sources.rae.transport import Transport

if TYPE_CHECKING:
    from supervisor.config.load import Config

LINGER_S: Final = 20.0
AGAIN_S: Final = 1.0  # between tries of what must succeed some time
LAST_S: Final = 3.0
PROCESSING: Final = "PROCESSING"
NO_TASK: Final = "it is no task"


class Bridge:
    """Both links, and the tasks between them. `say(line)` is for people."""

    def __init__(
        self,
        api: RaeApi,
        server: Server,
        notes: InFlightRecord,
        *,
        clock: Clock,
        poll_interval_s: float,
        heartbeat_interval_s: float,
        ahead: int,
        say: Callable[[str], None],
    ) -> None:
        self._api = api
        self._server = server
        self._notes = notes
        self._poll_interval_s = poll_interval_s
        self._heartbeat_interval_s = heartbeat_interval_s
        self._ahead = ahead
        self._backoff = Backoff()
        self._say = say
        self._wire: Connection | None = None
        self._lost = asyncio.Event()
        self._why_lost = ""
        self._told = ""
        self._on_the_way: dict[str, str] = {}  # id → type
        self._changed = asyncio.Event()

        def link(name: str, connect: Any, keep: Any, parted: Any) -> RetryingLink:
            def changed(link: Link, reason: str) -> None:
                self._changed.set()
                say(f"{name}: {link.value}" + (f": {reason}" if reason else ""))

            return RetryingLink(connect, keep, clock=clock, retry=True, changed=changed, parted=parted)

        self.control = link("control node", self._register, self._heartbeat, self._nothing)
        self.fleet = link("fleet", self._open, self._until_lost, self._close)

    @property
    def on_the_way(self) -> int:
        """Tasks taken from the control node whose result it does not have yet."""
        return len(self._on_the_way)

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; then says OFFLINE, and leaves what is on the way to the next start."""
        left, trouble = await self._notes.load()
        if trouble:
            self._say(trouble)
        jobs = [self.control.run(), self.fleet.run(), self._bring(), self._take(left)]
        work = [asyncio.create_task(job) for job in jobs]
        told = asyncio.create_task(_until(stop))
        try:
            done, _ = await asyncio.wait({told, *work}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a fault of ours ends the bridge in words, not in silence
        finally:
            await end(told, *work)
            with contextlib.suppress(RequestError, TimeoutError):
                async with asyncio.timeout(LAST_S):
                    await self._api.heartbeat(Availability.OFFLINE)

    # --- the links

    async def _register(self) -> None:
        await self._api.introduce(self._availability)

    async def _heartbeat(self) -> None:
        await asyncio.sleep(self._heartbeat_interval_s)
        try:
            await self._api.heartbeat(self._availability)
        except (NotFound, UnknownPath):
            await self._register()

    @property
    def _availability(self) -> Availability:
        welcome = self.fleet.link is Link.UP and len(self._on_the_way) < self._ahead
        return Availability.ONLINE if welcome else Availability.BUSY

    async def _open(self) -> None:
        self._lost.clear()
        self._wire = Connection(self._server, name="rae-node bridge", on_lost=self._gone)
        await self._wire.open()
        try:
            await self._wire.api(f"CONSUMER.INFO.{layout.RESULTS}.{layout.BRIDGE}")
        except Refused as missing:
            reason = f"{self._wire.url} has no consumer {layout.BRIDGE}: {missing.reason}; see deploy/fleet"
            raise RequestError(reason) from None

    def _gone(self, reason: str) -> None:
        self._why_lost = reason
        self._lost.set()

    async def _until_lost(self) -> None:
        await self._lost.wait()
        raise RequestError(self._why_lost)

    async def _close(self) -> None:
        link, self._wire = self._wire, None
        if link is not None:
            await link.close()

    async def _nothing(self) -> None:
        pass

    def _need(self) -> Connection:
        if self._wire is None or self.fleet.link is not Link.UP:
            raise RequestError("the fleet cannot be reached", sent=False)
        return self._wire

    async def _both_up(self) -> None:
        while self.control.link is not Link.UP or self.fleet.link is not Link.UP:
            self._changed.clear()
            await self._changed.wait()

    # --- from the control node to the fleet

    async def _take(self, left: tuple[InFlightTask, ...]) -> None:
        for entry in left:
            self._on_the_way[entry.id] = entry.type
        for entry in left:
            await self._until_done(lambda entry=entry: self._go_on(entry))  # type: ignore[misc]
        while True:
            await self._both_up()
            task = None
            if len(self._on_the_way) < self._ahead:
                try:
                    task = await self._api.poll()
                except TaskTooLarge as large:
                    await self._refuse(large.task_id, large.reason)
                    continue
                except RequestError as trouble:
                    self._say(f"poll: {trouble.reason}" + ("; a task may be lost with that answer" if trouble.sent else ""))
            if task is None:
                await asyncio.sleep(self._poll_interval_s)
                continue
            await self._pass_on(task)

    async def _pass_on(self, task: Mapping[str, Any]) -> None:
        """Note the task, then queue it, however long that takes: the control node does not hand it out again."""
        claim = _claim(task)
        if claim is None:
            await self._refuse(str(task["id"]).lower(), NO_TASK)
            return
        self._on_the_way[claim.id] = claim.type
        try:
            await self._notes.put(InFlightTask(claim.id, claim.type))
        except OSError as error:
            self._say(f"{claim.id}: could not be noted, a crash now would lose it: {error}")
        await self._until_done(lambda: self._queue(claim))

    async def _refuse(self, task_id: str, why: str) -> None:
        await self._until_done(lambda: self._post(Result(task_id, "", "", {}, f"refused: {why}")))

    async def _queue(self, claim: Claim) -> None:
        if await self._brought(claim.id):  # it was handed out anew, while its result waited
            return
        try:
            await self._need().store(layout.task_subject(claim.type, claim.id), encode_task(claim), claim.id)
        except Exists:
            pass
        except Refused as refused:
            await self._post(Result(claim.id, claim.type, "", {}, f"the fleet does not take this task: {refused.reason}"))
            await self._settled(claim.id)
            return
        self._say(f"{claim.id}: queued")

    async def _go_on(self, entry: InFlightTask) -> None:
        """A task that was on the way when the bridge ended: post its result, or see that it is queued."""
        task: Mapping[str, Any] | None
        try:
            task = await self._api.task(entry.id)
        except NotFound:
            task = {}
        except TaskTooLarge as large:
            task = {"status": large.state or PROCESSING}
        except RequestError as trouble:
            if not lasting(trouble):
                raise
            task = None
        if task is not None and task.get("status") != PROCESSING:
            await self._settled(entry.id)
        elif not await self._brought(entry.id) and task is not None:
            if claim := _claim({**task, "id": entry.id}):
                await self._queue(claim)
                return
            shown = isinstance(task.get("payload"), dict)
            why = f"refused: {NO_TASK}" if shown else "lost: the control node does not show the task any more"
            await self._post(Result(entry.id, entry.type, "", {}, why))
            await self._settled(entry.id)

    async def _brought(self, task_id: str) -> bool:
        """Whether the fleet has the task's result already; then it is posted."""
        data = await self._need().last(layout.RESULTS, layout.result_subject(task_id))
        if data is None:
            return False
        await self._post(stored_result(data, task_id))
        await self._settled(task_id)
        return True

    # --- from the fleet to the control node

    async def _bring(self) -> None:
        while True:
            try:
                delivery = await self._need().pull(
                    layout.RESULTS, layout.BRIDGE, linger_s=lambda: LINGER_S, enough=self._lost
                )
                if delivery is not None:
                    await self._deliver(delivery)
            except RequestError as trouble:
                if self.fleet.link is Link.UP:
                    self._gone(trouble.reason)
                await asyncio.sleep(AGAIN_S)

    async def _deliver(self, delivery: Delivery) -> None:
        """Post a result that is for the control node, and only then let the fleet forget that it was not."""
        try:
            result = decode_result(delivery.data)
        except Poison as poison:
            result = no_result(poison.task_id, str(poison))
        if result.id in self._on_the_way:
            await self._until_done(lambda: self._post(result))
            await self._settled(result.id)
        await self._need().word(delivery.reply, wire.ACK)

    async def _post(self, result: Result) -> None:
        """Have the control node take it. What it says no to for good becomes a failure with that reason, or is given up.

        Raises:
            RequestError: it did not take it now.
        """
        refusals, bare = 0, result.error is not None and not result.result
        while True:
            body = {"task_id": result.id, "result": clean.mapping(result.result), "error": result.error}
            try:
                await self._api.result(result.id, clean.encode(body))
            except RequestError as trouble:
                if not lasting(trouble):
                    if trouble.status != 500 or not await self._api.takes_heartbeat(self._availability):
                        raise
                    refusals += 1
                    if refusals < REFUSALS:
                        await asyncio.sleep(AGAIN_S)
                        continue
                if isinstance(trouble, NotFound) or bare:
                    self._say(f"{result.id}: the control node does not take its outcome: {trouble.reason}")
                    return
                why = f"the control node refused the result: {trouble.reason}"
                error = why if result.error is None else f"{result.error} ({why})"
                result, refusals, bare = replace(result, result={}, error=error), 0, True
                continue
            self._say(f"{result.id}: {result.status}, by {result.node or 'nobody'}")
            return

    async def _settled(self, task_id: str) -> None:
        self._on_the_way.pop(task_id, None)
        try:
            await self._notes.remove(task_id)
        except OSError as error:
            self._say(f"{task_id}: its note could not be removed: {error}")

    async def _until_done(self, work: Callable[[], Any]) -> None:
        """Try until it succeeds, while both links are up, ever more seldom (R21)."""

        async def when_up() -> None:
            await self._both_up()
            try:
                await work()
            except RequestError as trouble:
                if trouble.reason != self._told:
                    self._told = trouble.reason
                    self._say(f"not yet: {trouble.reason}")
                raise

        await AsyncRetrying(retry=retry_if_exception_type(RequestError), wait=self._backoff, sleep=asyncio.sleep)(when_up)


def _claim(task: Mapping[str, Any]) -> Claim | None:
    """What the control node shows as a task; None: it can be none of a fleet's."""
    kind, payload, priority = task.get("type"), task.get("payload"), task.get("priority")
    if not is_type(kind) or not isinstance(payload, dict):
        return None
    return Claim(str(task["id"]).lower(), kind, payload, priority if type(priority) is int else 0)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


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
    clock = SystemClock()
    control, execution = config.control, config.runtime.execution
    transport = Transport(control, clock, key)
    api = RaeApi(transport, control, node_id=config.node_id, token=key, capabilities={"gpu": True, "fleet": True})

    async def until_told() -> None:
        bridge = Bridge(
            api,
            server,
            InFlightRecord(config.paths.state / "bridge"),
            clock=clock,
            poll_interval_s=execution.poll_interval_sec,
            heartbeat_interval_s=execution.heartbeat_interval_sec,
            ahead=ahead,
            say=say,
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await bridge.run(stop)
        finally:
            await transport.close()

    try:
        asyncio.run(until_told())
    except Exception as error:  # noqa: BLE001  no traceback reaches a user
        say(f"the bridge ended by a fault of its own ({type(error).__name__}); started again, it goes on where it was")
        return 1
    return 0
