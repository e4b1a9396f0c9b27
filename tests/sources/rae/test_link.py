"""The link: registered again when forgotten, the truth in heartbeats, given up or not, and its status."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support import rae_server as s
from support.ports import free_port
from support.rae_rig import NODE_ID, running
from support.rae_server import RaeServer, in_loop, until

from states.ending import succeeded
from states.observation import Link
from supervisor.sources.base import Availability


@in_loop
async def test_started_before_the_server_it_registers_when_the_server_comes(tmp_path: Path) -> None:
    """Fault 3: registered once at start, and never again."""
    port = free_port()
    async with running(f"http://127.0.0.1:{port}", tmp_path) as rig:
        assert "connection refused" in await rig.down()
        assert not rig.source.ask()
        async with RaeServer().listening(port) as server:
            await rig.up()
            assert server.of("heartbeat")[0] == {"node_id": NODE_ID, "status": "BUSY"}, "register has said ONLINE"


@pytest.mark.parametrize("call", ["poll", "heartbeat"])
@in_loop
async def test_a_server_that_forgot_the_node_gets_it_registered_again(tmp_path: Path, call: str) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.node = type(server.node)(server.node._clock)
        task_id = server.add()
        if call == "poll":
            assert (await rig.claim()).id == task_id
        else:
            rig.source.announce(Availability.ONLINE)
            await until(lambda: server.node.nodes())
        assert rig.source.status.link is Link.UP
        assert len(server.of("register")) == 2


@in_loop
async def test_a_name_for_this_node_that_would_burst_the_note_is_none(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        server.faults["register"].append(s.raw(s.http(200, json.dumps({"id": "x" * 70_000}).encode())))
        async with running(server, tmp_path) as rig:
            assert "something else than the contract says" in await rig.down()
            await rig.up()


@in_loop
async def test_heartbeats_tell_the_truth_at_once_and_offline_at_the_end(tmp_path: Path) -> None:
    """Fault 2: always ONLINE, never BUSY or OFFLINE. The interval here is longer than the test."""
    async with RaeServer().listening() as server:
        async with running(server, tmp_path, heartbeat_s=600) as rig:
            await rig.up()
            for availability in (Availability.ONLINE, Availability.BUSY, Availability.ONLINE):
                rig.source.announce(availability)
                await until(lambda a=availability: server.of("heartbeat")[-1]["status"] == a)
            rig.source.announce(Availability.ONLINE)
        assert [body["status"] for body in server.of("heartbeat")] == ["BUSY", "ONLINE", "BUSY", "ONLINE", "OFFLINE"]


@in_loop
async def test_heartbeats_go_on_at_their_interval(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path, heartbeat_s=0.02):
        await until(lambda: len(server.of("heartbeat")) > 5)


@in_loop
async def test_without_retry_one_failure_gives_the_link_up_until_resumed(tmp_path: Path) -> None:
    """R21 with retry_on_disconnect false; a finished result waits and is delivered after all."""
    async with RaeServer().listening() as server, running(server, tmp_path, retry=False, heartbeat_s=0.01) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        server.faults["heartbeat"].append(s.status(500))
        await until(lambda: rig.source.status.link is Link.LOST)
        assert "retry_on_disconnect" in rig.source.status.reason
        assert not rig.source.ask()
        rig.source.settle(claim, succeeded({"done": True}))
        calls = len(server.calls)
        await asyncio.sleep(0)
        assert (rig.source.status.outbox, len(server.calls)) == (1, calls)
        rig.source.resume()
        await rig.up()
        await rig.delivered()
        assert server.task(task_id)["status"] == "COMPLETED"


@in_loop
async def test_without_retry_no_server_at_start_gives_the_link_up(tmp_path: Path) -> None:
    async with running("http://127.0.0.1:9", tmp_path, retry=False) as rig:
        await until(lambda: rig.source.status.link is Link.LOST)


@in_loop
async def test_the_status_says_since_when_and_where(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        assert rig.source.status.link is Link.DOWN
        await rig.up()
        up = rig.source.status
        assert (up.url, up.dialect, up.outbox, up.next_try_s) == (server.url, "B", 0, None)
        server.faults["poll"].append(s.closed)
        await rig.poll()
        await rig.down()
        await rig.up()
        assert rig.source.status.since_s >= up.since_s
        again = rig.source.status
        assert (again.link, again.reason) == (Link.UP, "")
        assert "broke off" in again.error, "the last error stays to be read"
        assert up.error_s is None
        assert again.error_s is not None
        assert again.error_s <= again.since_s
    assert rig.source.status.reason == "stopped"
