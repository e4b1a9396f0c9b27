"""Attempts that end with their node are counted, in the note and in the payload; after two of them the task has failed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support import rae_server as s
from support.nats_rig import NatsServer, needs_server, node, operator, server
from support.rae_rig import running
from support.rae_server import RaeServer, in_loop, until

from states.ending import handed_back, succeeded
from supervisor.sources.base import Claim
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import UNKNOWN, InFlightRecord, InFlightTask
from supervisor.sources.lost_attempts import GIVEN_UP, LOST_KEY, lost_in, read_count, with_count
from supervisor.sources.nats import subjects
from supervisor.sources.nats.connection import Connection

__all__ = ["server"]  # a fixture

ID, OTHER = "7bc3cfb7-7654-4c30-a856-0f28b426b085", "ff0c1c8e-52a4-4df1-8b3c-8a3b7e0f7f11"
LEASE_S = 3.0
SENT = {"a": 1, "rae_state": {"at": 3}}


# --- the count in a payload


@pytest.mark.parametrize(
    ("there", "lost"),
    [({}, 0), ({LOST_KEY: 0}, 0), ({LOST_KEY: 1}, 1), ({LOST_KEY: 2}, 2), ({LOST_KEY: 10**40}, 2), ({LOST_KEY: -1}, 0),
     ({LOST_KEY: True}, 0), ({LOST_KEY: 1.0}, 0), ({LOST_KEY: "1"}, 0), ({LOST_KEY: None}, 0), ({LOST_KEY: [1]}, 0)],
    ids=str,
)  # fmt: skip
def test_the_count_of_a_payload_is_read_strictly_and_no_task_sees_it(there: dict[str, Any], lost: int) -> None:
    claim = read_count(Claim(ID, "t", {**SENT, **there}, 4))
    assert claim == Claim(ID, "t", SENT, 4, lost)
    assert with_count(claim.payload, claim.lost) == {**SENT, **({LOST_KEY: lost} if lost else {})}
    assert lost_in({**SENT, **there}) == lost


# --- the count in the note


@pytest.mark.parametrize(
    ("noted", "lost"),
    [
        ({}, 1),  # as an earlier version wrote it, too
        ({"node": "n", "repost": None}, 1),
        ({"lost": 1}, 2),
        ({"repost": ""}, 0),
        ({"repost": OTHER, "lost": 1}, 1),
        ({"over": True}, 0),
        ({"over": True, "lost": 1}, 1),
    ],
    ids=str,
)
def test_an_attempt_that_was_not_over_when_the_node_ended_is_lost_once(
    tmp_path: Path, noted: dict[str, Any], lost: int
) -> None:
    tasks = [{"id": ID, "type": "t", **noted}]
    (tmp_path / "task.json").write_text(json.dumps({"version": 1, "tasks": tasks}))

    async def found(more: bool = False) -> tuple[int, ...]:
        record = InFlightRecord(tmp_path)
        left, problem = await record.load()
        assert problem == ""
        if more:
            await record.put(InFlightTask(OTHER, "t"))
        return tuple(task.lost for task in left)

    async def story() -> None:
        assert await found() == (lost,)
        assert await found(more=True) == (lost,), "the node ended again before it was settled"
        assert await found() == (lost, 1), "and once more, after the note was written again"

    asyncio.run(story())


def test_a_negative_count_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"version": 1, "tasks": [{"id": ID, "type": "t", "lost": -1}]}))
    assert "damaged" in asyncio.run(InFlightRecord(tmp_path).load())[1]


def test_a_note_is_closed_by_one_write_for_all_or_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        record = InFlightRecord(tmp_path)
        await record.put(InFlightTask(ID, "t"))
        await record.put(InFlightTask(OTHER, "t"))
        await record.close(OTHER)
        notes = {task["id"]: task for task in json.loads((tmp_path / "task.json").read_text())["tasks"]}
        assert notes == {ID: {"id": ID, "type": "t"}, OTHER: {"id": OTHER, "type": "t", "over": True}}
        await record.close()
        monkeypatch.setattr(record, "_replace", None)  # nothing is left to write
        await record.close()
        assert [task.lost for task in (await InFlightRecord(tmp_path).load())[0]] == [0, 0]

    asyncio.run(story())


# --- at a control node


async def lose(server: RaeServer, folder: Path) -> Claim:
    """A node takes a task, and its power is cut."""
    async with running(server, folder, stop_s=None) as rig:
        await rig.up()
        await rig.delivered()
        return await rig.claim()


@pytest.mark.parametrize("dialect", "BCD")
@in_loop
async def test_a_task_that_ends_its_node_twice_has_failed(tmp_path: Path, dialect: str) -> None:
    async with RaeServer(dialect).listening() as server:
        server.add("kind", SENT, 4)
        first = await lose(server, tmp_path)
        second = await lose(server, tmp_path)
        assert (first.payload, first.lost, second.payload, second.lost) == (SENT, 0, SENT, 1)
        assert server.of("create") == [{"type": "kind", "payload": {**SENT, LOST_KEY: 1}, "priority": 4}]
        assert server.task(first.id)["error"].endswith(f"; resubmitted as {second.id}")
        async with running(server, tmp_path) as rig:
            await rig.up()
            await rig.delivered()
            assert await rig.poll() is None
            assert "given-up" in rig.names()
        assert (server.task(second.id)["status"], server.task(second.id)["error"]) == ("FAILED", GIVEN_UP)
        assert len(server.of("create")) == 1


@in_loop
async def test_dialect_a_says_so_too(tmp_path: Path) -> None:
    async with RaeServer("A").listening() as server:
        server.add("kind", {LOST_KEY: 1})
        claim = await lose(server, tmp_path)
        async with running(server, tmp_path) as rig:
            await rig.delivered()
        assert server.task(claim.id)["error"] == GIVEN_UP


@in_loop
async def test_a_task_whose_payload_says_it_is_not_begun(tmp_path: Path) -> None:
    """Another node has lost both, and could not fail it."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add("kind", {LOST_KEY: 2})
        assert await rig.poll() is None
        await rig.delivered()
        assert server.task(task_id)["error"] == GIVEN_UP
        assert rig.note == []


@pytest.mark.parametrize("lost", [0, 1])
@in_loop
async def test_a_person_who_comes_back_loses_no_attempt(tmp_path: Path, lost: int) -> None:
    count = {LOST_KEY: lost} if lost else {}
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.add("kind", {"a": 1, **count})
        for step in range(4):
            claim = await rig.claim()
            assert claim.lost == lost
            assert LOST_KEY not in claim.payload
            rig.source.hand_back(claim, handed_back("the person came back", {"step": step}), "resubmit")
            await rig.delivered()
        assert server.of("create")[-1]["payload"] == {"a": 1, "rae_state": {"step": 3}, **count}


@pytest.mark.parametrize("end", ["in order", "power cut", "power cut during a re-post"])
@in_loop
async def test_an_attempt_that_was_over_before_the_node_ended_is_not_lost(tmp_path: Path, end: str) -> None:
    """Its outcome waited for the link."""
    async with RaeServer().listening() as server:
        old = server.add("kind", {"a": 1})
        async with running(server, tmp_path, stop_s=0.2 if end == "in order" else None) as rig:
            await rig.up()
            claim = await rig.claim()
            for kind in ("result", "create", "heartbeat"):
                server.always[kind] = s.closed
            if end == "power cut during a re-post":
                rig.source.hand_back(claim, handed_back("the person came back"), "resubmit")
                await until(lambda: rig.note[0].get("repost") == UNKNOWN)
            else:
                rig.source.settle(claim, succeeded({"n": 1}))
                await until(lambda: rig.note[0].get("over"))
        server.always.clear()
        async with running(server, tmp_path) as rig:
            await rig.up()
            await rig.delivered()
            assert (await rig.claim()).lost == 0
        assert server.task(old)["error"].startswith("preempted: node restarted")
        assert server.of("create")[-1]["payload"] == {"a": 1}


@in_loop
async def test_a_lost_attempt_is_counted_once_however_often_the_node_starts_meanwhile(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        server.add("kind")
        await lose(server, tmp_path)
    for stop_s in (0.1, None, None, 0.1):  # stopped in order, or by another power cut
        async with running("http://127.0.0.1:9", tmp_path, stop_s=stop_s) as rig:  # the discard port: nobody is there
            assert next(iter(rig.source._outbox)).lost == 1


@in_loop
async def test_a_server_that_queues_again_what_a_silent_node_had_counts_too(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        task_id = server.add("kind", {"a": 1})
        for lost in (0, 1):
            server.node.register(f"silent-{lost}", {}, None)
            claimed = server.node.claim(f"silent-{lost}")
            assert claimed is not None
            assert lost_in(claimed["payload"]) == lost
            server.node._requeue_after_s = -1.0
            assert server.node.requeue() == [task_id]
        async with running(server, tmp_path) as rig:
            await rig.up()
            assert await rig.poll() is None
            await rig.delivered()
        assert server.task(task_id)["error"] == GIVEN_UP


# --- in a fleet


@needs_server
@in_loop
async def test_in_a_fleet_the_next_node_knows(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url, lease_s=LEASE_S) as fleet:
        task = await fleet.submit("echo", {"a": 1})
        for lost, name in enumerate(("one", "two")):
            async with node(server.url, tmp_path, node_id=name, stop_s=None) as rig:
                claim = await rig.claim()
                assert (claim.id, claim.payload, claim.lost) == (task, {"a": 1}, lost)
                if lost:  # given back with a saved state, and taken again: both stay
                    rig.source.hand_back(claim, handed_back("the person came back", {"at": 7}), "resubmit")
                    claim = await rig.claim()
                    assert (claim.payload, claim.lost) == ({"a": 1, "rae_state": {"at": 7}}, 1)
            async with node(server.url, tmp_path, node_id=name, types=()) as rig:
                await rig.up()
                assert (await rig.saw("note-found"))["task"] == task
                assert not (tmp_path / name / "task.json").exists()
        async with node(server.url, tmp_path, node_id="three") as rig:
            await until(lambda: rig.source.ask() and "given-up" in rig.names(), "it is not begun")
            result = await fleet.settled(task)
        assert (result.status, result.error) == ("FAILED", GIVEN_UP)


@needs_server
@in_loop
async def test_a_fleet_that_keeps_no_count_does_not_make_a_node_forget_its_own(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Connection.last

    async def last(self: Connection, stream: str, subject: str, **more: Any) -> bytes | None:
        if stream == subjects.PLACES:
            raise RequestError("the stream is gone")
        return await genuine(self, stream, subject, **more)

    monkeypatch.setattr(Connection, "last", last)
    async with operator(server.url, lease_s=LEASE_S) as fleet:
        task = await fleet.submit()
        for lost in (0, 1):
            async with node(server.url, tmp_path, stop_s=None) as rig:
                assert (await rig.claim()).lost == lost
        async with node(server.url, tmp_path) as rig:
            assert (await rig.saw("lost-not-told"))["task"] == task
            await until(lambda: rig.source.ask() and "given-up" in rig.names(), "it is not begun")
            assert (await fleet.settled(task)).error == GIVEN_UP


@needs_server
@in_loop
async def test_a_fleets_node_that_stops_in_order_loses_nothing(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url, lease_s=60) as fleet:
        task = await fleet.submit()
        async with node(server.url, tmp_path) as rig:
            await rig.claim()
        async with node(server.url, tmp_path) as rig:
            await rig.up()
            await rig.saw("note-found")
            assert await fleet.connection.last(subjects.PLACES, subjects.place_subject(task)) is None
            assert rig.source._lost == {}
