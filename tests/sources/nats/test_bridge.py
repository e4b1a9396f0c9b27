"""The bridge at a real nats-server and a control node that misbehaves: no task is lost, none ends the bridge (R2, R21)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import rae_server as s
from support.constants import constants
from support.nats_rig import NatsServer, Operator, needs_server, node, operator, server
from support.rae_server import RaeServer, in_loop, until

from supervisor.config.schema import Control
from supervisor.linux.clock import SystemClock
from supervisor.sources.base import Claim, SourceSettings
from supervisor.sources.errors import MIB
from supervisor.sources.in_flight import InFlightRecord, InFlightTask
from supervisor.sources.lost_attempts import GIVEN_UP, LOST_KEY
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin.bridge import Bridge
from supervisor.sources.nats.admin.overview import overview
from supervisor.sources.nats.connection import Connection, Server
from supervisor.sources.nats.messages import Result, decode_task
from supervisor.sources.nats.registry import BRIDGE, entry
from supervisor.sources.rae.outbox import REFUSALS

__all__ = ["server"]  # a fixture
pytestmark = needs_server
NAME = "the-fleet"
RUN = ("echo", "échó")


async def registered(server: NatsServer, *types: str) -> None:
    """A node that runs these types writes its entry."""
    connection = Connection(Server(server.url), name="one")
    await connection.open()
    known = {"node": "one", "availability": "ONLINE", "types": types}
    await connection.request(subjects.node_subject("one"), entry(known, {"state": "READY"}, 0.0))
    await connection.close()


@contextlib.asynccontextmanager
async def bridge(
    server: NatsServer, control: RaeServer, folder: Path, heartbeat_interval_s: float = 0.1, runs: Any = RUN, **others: Any
) -> AsyncIterator[tuple[Bridge, list[str]]]:
    """A bridge that runs, and its messages. A node of the fleet runs these types."""
    await registered(server, *runs)
    with constants({"max_requests_per_sec": 1000, "backoff_longest_s": 0.3, **others}):
        settings = SourceSettings(
            control=Control(url=control.url), node_id=NAME, state_dir=folder, heartbeat_interval_s=heartbeat_interval_s,
            poll_interval_s=0.05, retry_on_disconnect=True, on_preempt={},
        )  # fmt: skip
        lines: list[str] = []
        one = Bridge(settings, Server(server.url), clock=SystemClock(), ahead=5, say=lines.append)
        stop = asyncio.Event()
        work = asyncio.create_task(one.run(stop))
        try:
            yield one, lines
            assert not work.done(), work
        finally:
            stop.set()
            await work


async def left(control: RaeServer, folder: Path) -> str:
    """A task that the last run of the bridge had taken and recorded; its id."""
    control.node.register(NAME, {}, None)
    task_id = control.add("echo", {"a": 1}, 7)
    assert control.node.claim(NAME)
    record = InFlightRecord(folder)
    await record.load()
    await record.put(InFlightTask(task_id, "echo"))
    return task_id


def over(control: RaeServer, task_id: str) -> bool:
    return control.task(task_id)["status"] in ("COMPLETED", "FAILED")


NO_RESULTS = [b"", b"[1]", b'{"id": "%b", "type": "echo", "node": "n", "result": [], "error": null}', b'{"id": "x"}']


@pytest.mark.parametrize("stored", NO_RESULTS)
@in_loop
async def test_what_is_stored_in_place_of_a_left_tasks_result_fails_it(
    server: NatsServer, tmp_path: Path, stored: bytes
) -> None:
    async with RaeServer().listening() as control, operator(server.url) as fleet:
        task_id = await left(control, tmp_path)
        data = stored.replace(b"%b", task_id.encode())
        await fleet.connection.store(subjects.result_subject(task_id), data, "x")
        async with bridge(server, control, tmp_path) as (one, lines):
            await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
            assert "no result" in control.task(task_id)["error"]
            await until(lambda: not one.pending)
            other = control.add("echo")
            await until(lambda: f"{other}: queued" in lines)


@in_loop
async def test_another_tasks_result_does_not_settle_this_one(server: NatsServer, tmp_path: Path) -> None:
    async with RaeServer().listening() as control, operator(server.url) as fleet:
        task_id = await left(control, tmp_path)
        other = Result(str(uuid4()), "echo", "n", {"x": 1}, None)
        await fleet.connection.store(subjects.result_subject(task_id), other.encode(), "x")
        async with bridge(server, control, tmp_path):
            await until(lambda: over(control, task_id))
            assert "no result" in control.task(task_id)["error"]


@in_loop
async def test_a_node_that_stores_what_is_no_result_fails_the_task(server: NatsServer, tmp_path: Path) -> None:
    async with (
        RaeServer().listening() as control,
        operator(server.url) as fleet,
        bridge(server, control, tmp_path) as (one, lines),
    ):
        task_id = control.add("echo")
        await until(lambda: f"{task_id}: queued" in lines, lambda: f"queued, not {lines}")
        await fleet.connection.store(subjects.result_subject(task_id), NO_RESULTS[2].replace(b"%b", task_id.encode()), "x")
        await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
        assert "no result" in control.task(task_id)["error"]
        await until(lambda: not one.pending)


@in_loop
async def test_a_task_too_large_to_be_read_is_failed(server: NatsServer, tmp_path: Path) -> None:
    async with (
        RaeServer().listening() as control,
        operator(server.url),
        bridge(server, control, tmp_path, max_answer_bytes=MIB) as (_, lines),
    ):
        task_id = control.add("echo", {"x": "y" * 2_000_000})
        await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
        assert "more than 1 MiB" in control.task(task_id)["error"]
        assert "may be lost" not in " ".join(lines)


@in_loop
async def test_a_task_handed_out_again_whose_result_is_there_is_not_done_again(server: NatsServer, tmp_path: Path) -> None:
    """As after a bridge was away for so long that the control node queued its tasks again."""
    async with RaeServer().listening() as control, operator(server.url) as fleet:
        task_id = control.add("echo")
        await stored(fleet, task_id)
        async with bridge(server, control, tmp_path) as (_, lines):
            await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
            assert control.task(task_id)["result"] == {"x": 1}
            assert (await fleet.stream(subjects.TASKS))["messages"] == 0


@in_loop
async def test_a_control_node_that_is_away_is_left_to_the_link(server: NatsServer, tmp_path: Path) -> None:
    """No result is posted while the control node is away; it is posted later."""
    async with (
        RaeServer().listening() as control,
        operator(server.url) as fleet,
        bridge(server, control, tmp_path) as (one, lines),
    ):
        task_id = control.add("echo")
        await until(lambda: f"{task_id}: queued" in lines, lambda: f"queued, not {lines}")
        control.always.update({kind: s.status(502) for kind in ("register", "heartbeat", "poll", "result")})
        await until(lambda: not one.control.up)
        tries = len(control.of("register"))
        await stored(fleet, task_id)
        await until(lambda: len(control.of("register")) > tries + 15, "the link tries again and again")
        assert control.of("result") == []
        control.always.clear()
        await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")


async def stored(fleet: Operator, task_id: str) -> None:
    """A node's result of the task."""
    result = Result(task_id, "echo", "n", {"x": 1}, None)
    await fleet.connection.store(subjects.result_subject(task_id), result.encode(), task_id)


@in_loop
async def test_a_control_node_that_is_broken_altogether_does_not_cost_a_result(
    server: NatsServer, tmp_path: Path
) -> None:
    """500s count against the result only while the same server takes heartbeats."""
    async with (
        RaeServer().listening() as control,
        operator(server.url) as fleet,
        bridge(server, control, tmp_path, heartbeat_interval_s=600) as (_, lines),
    ):
        task_id = control.add("echo")
        await until(lambda: f"{task_id}: queued" in lines, lambda: f"queued, not {lines}")
        control.always.update({kind: s.status(500) for kind in ("result", "heartbeat", "register")})
        await stored(fleet, task_id)
        await until(lambda: len(control.of("result")) > 2 * REFUSALS, lambda: f"tried again and again, not {lines}")
        control.always.clear()
        await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
        assert control.task(task_id)["result"] == {"x": 1}


@in_loop
async def test_a_result_that_the_control_node_cannot_take_fails_and_holds_up_no_other(
    server: NatsServer, tmp_path: Path
) -> None:
    async with (
        RaeServer().listening() as control,
        operator(server.url) as fleet,
        bridge(server, control, tmp_path) as (one, lines),
    ):
        first, second, third = (control.add("echo") for _ in range(3))
        await until(lambda: f"{third}: queued" in lines, lambda: f"queued, not {lines}")
        control.faults["result"] += [s.status(500)] * REFUSALS
        await stored(fleet, first)
        await until(lambda: over(control, first), lambda: f"settled, not {lines}")
        await until(lambda: f"{first}: FAILED, by n" in lines, lambda: f"lines, not {lines}")
        assert "refused the result" in control.task(first)["error"]
        control.faults["result"] += [s.status(500)] * 2 * REFUSALS
        await stored(fleet, second)
        await stored(fleet, third)
        await until(lambda: over(control, third), lambda: f"settled, not {lines}")
        assert not over(control, second)
        await until(lambda: not one.pending)
        assert any(line.startswith(f"{second}: the control node does not take its outcome") for line in lines)


async def queued(fleet: Operator, kind: str, task_id: str) -> Claim:
    """The task as it lies in the queue."""
    msg = await fleet.connection.api(f"STREAM.MSG.GET.{subjects.TASKS}", {"last_by_subj": subjects.task_subject(kind, task_id)})
    return decode_task(base64.b64decode(msg["message"]["data"]))


@in_loop
async def test_what_is_queued_is_the_task_as_it_was(server: NatsServer, tmp_path: Path) -> None:
    async with (
        RaeServer().listening() as control,
        operator(server.url) as fleet,
        bridge(server, control, tmp_path) as (_, lines),
    ):
        task_id = control.add("échó", {"a": [1, None]}, 7)
        await until(lambda: f"{task_id}: queued" in lines, lambda: f"queued, not {lines}")
        assert await queued(fleet, "échó", task_id) == Claim(task_id, "échó", {"a": [1, None]}, 7)


@in_loop
async def test_a_left_task_that_was_not_queued_is_queued_as_it_was(server: NatsServer, tmp_path: Path) -> None:
    async with RaeServer().listening() as control, operator(server.url) as fleet:
        task_id = await left(control, tmp_path)
        async with bridge(server, control, tmp_path) as (_, lines):
            await until(lambda: f"{task_id}: queued" in lines, lambda: f"queued, not {lines}")
            assert await queued(fleet, "echo", task_id) == Claim(task_id, "echo", {"a": 1}, 7)


@pytest.mark.parametrize("kind", ["x" * 70_000, "\x1b[31m", ""])
@in_loop
async def test_a_left_task_that_is_none_any_more_is_refused(server: NatsServer, tmp_path: Path, kind: str) -> None:
    async with RaeServer().listening() as control, operator(server.url):
        task_id = await left(control, tmp_path)
        next(iter(control.node._tasks.values())).type = kind
        async with bridge(server, control, tmp_path) as (one, lines):
            await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
            assert control.task(task_id)["error"] == "refused: it is no task"
            await until(lambda: not one.pending)
            assert one.fleet.status.error == ""


@pytest.mark.parametrize(
    "kind", ["x" * 5_000, "x" * 70_000, "\x1b[31m", "a\nb"], ids=["long", "longer than a note", "escape", "lines"]
)
@in_loop
async def test_a_type_that_no_node_can_have_is_refused_and_bursts_neither_note_nor_connection(
    server: NatsServer, tmp_path: Path, kind: str
) -> None:
    async with (
        RaeServer().listening() as control,
        operator(server.url),
        bridge(server, control, tmp_path) as (one, lines),
    ):
        task_id = control.add(kind)
        await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
        assert control.task(task_id)["error"] == "refused: it is no task"
        other = control.add("echo")
        await until(lambda: f"{other}: queued" in lines, lambda: f"queued, not {lines}")
        assert (await InFlightRecord(tmp_path).load())[1] == ""
        assert one.fleet.status.error == ""


@in_loop
async def test_a_full_note_is_read_again(tmp_path: Path) -> None:
    """As many tasks as a bridge may have on the way and aside, with the longest types."""
    record = InFlightRecord(tmp_path)
    await record.load()
    record._tasks = {e.id: e for e in (InFlightTask(str(uuid4()), "\U0001f600" * 128, "n" * 200) for _ in range(2300))}
    await record.put(InFlightTask(str(uuid4()), "t"))
    left, problem = await InFlightRecord(tmp_path).load()
    assert (len(left), problem) == (2301, "")


@in_loop
async def test_attempts_that_ended_with_their_node_are_counted_on_both_sides_of_the_bridge(
    server: NatsServer, tmp_path: Path
) -> None:
    """One was lost at a node of the control node's own, the other in the fleet; a bridge that ends loses none."""
    async with RaeServer().listening() as control, operator(server.url, lease_s=1.5):
        task_id = control.add("echo", {"a": 1, LOST_KEY: 1})
        for _ in range(2):  # a bridge that ends here and begins again
            async with bridge(server, control, tmp_path / "bridge") as (_, lines):
                await until(lambda: f"{task_id}: queued" in lines, lambda: f"queued, not {lines}")
        async with bridge(server, control, tmp_path / "bridge") as (_, lines):
            async with node(server.url, tmp_path, stop_s=None) as rig:
                claim = await rig.claim()
                assert (claim.payload, claim.lost) == ({"a": 1}, 1)
            async with node(server.url, tmp_path) as rig:
                await until(lambda: rig.source.ask() and "given-up" in rig.names())
                await until(lambda: over(control, task_id), lambda: f"settled, not {lines}")
        assert control.task(task_id)["error"] == GIVEN_UP


@in_loop
async def test_tasks_that_no_node_runs_stand_in_the_way_of_none(server: NatsServer, tmp_path: Path) -> None:
    """Many of two types that nobody runs beside some that one runs (R21); they wait, it is said since when, and a node that
    comes gets them."""
    async with RaeServer().listening() as control, operator(server.url) as fleet:
        unknown = [control.add(f"render-{n % 2}", {"n": n}) for n in range(200)]
        known = [control.add("echo") for _ in range(20)]
        async with bridge(server, control, tmp_path) as (one, lines):
            done: set[str] = set()
            while len(done) < len(known):
                delivery = await fleet.connection.pull(subjects.TASKS, subjects.CONSUMER, linger_s=lambda: 10.0)
                assert delivery is not None, lines[-5:]
                task = decode_task(delivery.data)
                assert task.type == "echo"
                result = Result(task.id, task.type, "one", {}, None)
                await fleet.connection.store(subjects.result_subject(task.id), result.encode(), task.id)
                await fleet.connection.acknowledge(delivery.reply, b"+ACK")
                done.add(task.id)
            assert done == set(known)
            await until(lambda: all(over(control, task_id) for task_id in known))
            assert sum(len(ids) for ids in one.aside.values()) == len(unknown)
            assert lines.count("render-0: no node of the fleet runs it; its tasks wait") == 1

            async def shown() -> str:
                nodes = (await overview(fleet.connection))["nodes"]
                return next((node["reason"] for node in nodes if node["state"] == BRIDGE), "")

            while "render-0 (" not in (reason := await shown()):
                await asyncio.sleep(0.05)
            assert reason.startswith("no node runs: render-")
            assert " since 2" in reason
            await registered(server, *RUN, "render-1")
            await until(lambda: f"{unknown[1]}: queued" in lines, lambda: f"queued, not {lines[-5:]}")
            assert control.task(unknown[0])["status"] == "PROCESSING"
        assert f"{unknown[0]}: queued" not in lines
