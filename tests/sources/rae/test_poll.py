"""The poll: made when asked for alone, one claim at a time, and a lost answer is said and never asked for again by itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support import rae_server as s
from support.rae_rig import clock, in_made_time, running
from support.rae_server import RaeServer, in_loop, until

from states.ending import handed_back, succeeded


@in_loop
async def test_it_never_polls_by_itself_and_holds_one_claim(tmp_path: Path) -> None:
    """Fault 2: polled every two seconds whatever was going on."""
    async with RaeServer().listening() as server, running(server, tmp_path, heartbeat_s=0.02) as rig:
        await rig.up()
        first, second = server.add(), server.add()
        await until(lambda: len(server.of("heartbeat")) > 5)
        assert server.of("poll") == []
        assert rig.source.ask()
        assert rig.source.asking
        assert not rig.source.ask(), "one is in flight"
        await until(lambda: rig.source.waiting)
        assert not rig.source.ask(), "one waits"
        assert not rig.source.asking
        waiting = rig.source.waiting
        assert waiting is not None
        assert waiting.id == first
        rig.source.hand_back(waiting, handed_back("user returned"), "fail")
        assert rig.source.waiting is None
        assert rig.source.take() is None
        assert (await rig.claim()).id == second
        assert len(server.of("poll")) == 2


@in_loop
async def test_an_extra_answer_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    claim = {"id": "7bc3cfb7-7654-4c30-a856-0f28b426b085", "type": "t", "payload": {}}
    extra = s.http(200, b"null") + s.http(200, json.dumps(claim).encode())
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.faults["poll"].append(s.raw(extra))
        assert await rig.poll() is None
        assert await rig.poll() is None


@in_loop
async def test_a_lost_poll_is_said_and_a_new_life_gets_the_task_back(tmp_path: Path) -> None:
    """A server that looks at lives hands it out again; RAE's has no leases, and the journal names the loss."""
    async with RaeServer().listening() as server, running(server, tmp_path, capabilities={"life": "first"}) as rig:
        await rig.up()
        waits = server.add()
        first = await rig.claim()
        server.faults["poll"].append(s.acted_then_closed)
        lost = server.add()
        assert await rig.poll() is None
        await until(lambda: "poll-lost" in rig.names())
        await rig.up()
        server.always["result"] = s.status(503)
        rig.source.settle(first, succeeded({}))
        assert not rig.source.ask(), "the new life would take back what is on its way"
        server.always.clear()
        await rig.delivered()
        assert (await rig.claim()).id == lost
        assert server.task(waits)["status"] == "COMPLETED"
        assert len({body["capabilities"]["life"] for body in server.of("register")}) == 2


@in_loop
async def test_a_lost_poll_is_a_loss_where_lives_are_not_told(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.faults["poll"].append(s.acted_then_closed)
        server.add()
        assert await rig.poll() is None
        await rig.up()
        assert await rig.poll() is None, "the server has handed it out"
        assert rig.names().count("poll-lost") == 1


@in_loop
async def test_a_poll_that_is_cut_by_the_end_of_the_node_is_said(tmp_path: Path) -> None:
    async with RaeServer(always={"poll": s.silent}).listening() as server:
        async with running(server, tmp_path, stop_s=0.2, read_timeout_s=20, total_timeout_s=20) as rig:
            await rig.up()
            assert rig.source.ask()
            await until(lambda: server.of("poll"))
        assert rig.names().count("poll-lost") == 1


@pytest.mark.parametrize("dialect", "ABCD")
@pytest.mark.parametrize("late_s", [20, 60, 200])
@in_made_time
async def test_a_poll_that_the_server_may_still_answer_is_not_given_up(tmp_path: Path, dialect: str, late_s: int) -> None:
    """A lock on the server's table: it hands the task out all the same."""
    slow = RaeServer(dialect, always={"poll": s.late(late_s)})
    async with slow.listening() as server, running(server, tmp_path, patient_s=600) as rig:
        await rig.up()
        ids = [server.add() for _ in range(3)]
        for task_id in ids:
            assert rig.source.ask()
            await asyncio.sleep(late_s + 1)
            claim = rig.source.take()
            assert claim is not None
            assert claim.id == task_id
        assert rig.source.status.lost_polls == 0
        assert len(server.of("poll")) == 3


@pytest.mark.parametrize("dialect", "ABCD")
@in_made_time
async def test_after_a_lost_poll_the_server_must_answer_a_harmless_question_first(tmp_path: Path, dialect: str) -> None:
    harmless = "nodes" if dialect == "A" else "task"
    deaf = RaeServer(dialect, always={harmless: s.closed})
    async with deaf.listening() as server, running(server, tmp_path, lost_poll_first_s=30) as rig:
        await rig.up()
        before = len(server.of(harmless))
        server.faults["poll"].append(s.acted_then_closed)
        assert await rig.poll() is None
        await asyncio.sleep(29)
        assert len(server.of(harmless)) == before
        await until(lambda: len(server.of(harmless)) > before + 2)
        assert not rig.source.ask()
        assert rig.source.status.lost_polls == 1
        server.always.clear()
        task_id = server.add()
        assert (await rig.claim()).id == task_id
        assert len(server.of("poll")) == 2


@in_made_time
async def test_polls_that_are_lost_in_a_row_become_rare(tmp_path: Path) -> None:
    """Each may cost the control node a task. The operator's word ends the pause."""
    losing = RaeServer(always={"poll": s.acted_then_closed})
    async with losing.listening() as server, running(server, tmp_path, lost_poll_first_s=30) as rig:
        await rig.up()
        end_s = clock().now_s() + 3 * 3600
        while clock().now_s() < end_s:
            rig.source.ask()
            await asyncio.sleep(10)
        lost = rig.source.status.lost_polls
        assert len(server.of("poll")) == lost == rig.names().count("poll-lost")
        assert 7 < lost < 14
        server.always.clear()
        began_s = clock().now_s()
        rig.source.resume()
        assert await rig.poll() is None
        assert clock().now_s() - began_s < 1
