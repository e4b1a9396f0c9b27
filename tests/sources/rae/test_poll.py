"""The poll: made when asked for alone, one claim at a time, and a lost answer is said and never asked for again by itself."""

from __future__ import annotations

import json
from pathlib import Path

from support import rae_server as s
from support.rae_rig import running
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
