"""How often a server is called: Retry-After, so many requests a second, one of a kind, and no hammering of a dead one."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from pathlib import Path

import pytest
from support import rae_server as s
from support.rae_rig import clock, in_made_time, running
from support.rae_server import RaeServer, until

from states.ending import failed, succeeded


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "a date"])
@in_made_time
async def test_retry_after_is_waited_for_by_all_requests(tmp_path: Path, status: int, as_date: bool) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.add()
        claim = await rig.claim()
        asked = formatdate(clock().wall_s() + 2.5, usegmt=True) if as_date else "1"  # a date has whole seconds
        server.faults["poll"].append(s.status(status, {"detail": "slow down"}, retry_after=asked))
        began_s = clock().now_s()
        assert await rig.poll() is None
        await until(lambda: rig.source.status.next_try_s)
        calls = len(server.calls)
        rig.source.settle(claim, succeeded({}))
        assert str(status) in rig.source.status.reason
        await rig.up()
        await rig.delivered()
        assert server.times_s[calls] - began_s >= 1, "whatever comes next, the outcome too"


@pytest.mark.parametrize("asked", ["soon", "-5", "1e9", "", "Tue, 99 Nov 2026 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 -0000"])
@in_made_time
async def test_a_retry_after_that_says_nothing_is_none(tmp_path: Path, asked: str) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.faults["poll"].append(s.status(429, {}, retry_after=asked))
        assert await rig.poll() is None
        await rig.down()
        await rig.up()


@in_made_time
async def test_neither_the_operator_nor_the_end_waits_for_a_retry_after(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        async with running(server, tmp_path) as rig:
            await rig.up()
            server.add()
            claim = await rig.claim()
            began_s = clock().now_s()
            for end in (False, True):
                server.faults["poll"].append(s.status(429, {}, retry_after="3000"))
                assert await rig.poll() is None
                await until(lambda: rig.source.status.next_try_s)
                if not end:
                    rig.source.resume()
                    await rig.up()
            rig.source.settle(claim, succeeded({"x": 1}))
        assert clock().now_s() - began_s < 60
        assert server.task(claim.id)["status"] == "COMPLETED"
        assert server.of("heartbeat")[-1]["status"] == "OFFLINE"


@in_made_time
async def test_nodes_that_are_told_to_come_back_later_do_not_come_back_as_one(tmp_path: Path) -> None:
    async with RaeServer(always={"register": s.status(503, {}, retry_after="100")}).listening() as server:
        waits = []
        for n in range(8):
            async with running(server, tmp_path / str(n), stop_s=0.1) as rig:
                await until(lambda: rig.source.status.next_try_s, "a next try")
                waits.append((rig.source.status.next_try_s or 0.0) - rig.source._clock.now_s())
        assert all(99 < wait_s <= 110 for wait_s in waits)
        assert max(waits) - min(waits) > 0.5


@in_made_time
async def test_no_second_holds_more_requests_than_are_allowed(tmp_path: Path) -> None:
    """Also where each of them is due: heartbeats every 20 ms, a poll whenever one may be made."""
    async with RaeServer().listening() as server, running(server, tmp_path, heartbeat_s=0.02, max_requests_per_sec=4) as rig:
        await rig.up()
        times = server.times_s
        while len(times) < 12:
            await rig.poll()
    # what a request takes on its way may differ by a little
    assert all(later - earlier > 0.9 for earlier, later in zip(times, times[4:], strict=False))


@in_made_time
async def test_one_request_of_a_kind_is_in_flight(tmp_path: Path) -> None:
    """The heartbeat of the link and the one that checks the server are one kind."""
    flying: set[str] = set()
    twice: list[str] = []

    async def slow(x: s.Exchange) -> None:
        kind = server.kind(server.requests[-1])
        twice.extend([kind] if kind in flying else [])
        flying.add(kind)
        await asyncio.sleep(0.03)
        flying.discard(kind)
        x.writer.write(x.genuine())

    server = RaeServer(always={"heartbeat": slow, "register": slow, "result": s.status(500)})
    async with server.listening(), running(server, tmp_path, heartbeat_s=0.01) as rig:
        await rig.up()
        server.add()
        rig.source.settle(await rig.claim(), failed("failed"))
        await until(lambda: len(server.of("result")) > 4)
        assert not twice
        server.always.clear()


@in_made_time
async def test_a_dead_server_is_not_hammered(tmp_path: Path) -> None:
    """Nor forgotten: an hour of it, the waits half a minute on average and a minute at most."""
    dead = RaeServer(always={"register": s.status(503)})
    async with dead.listening() as server, running(server, tmp_path, backoff_longest_s=60) as rig:
        await rig.down()
        await asyncio.sleep(3600)
        assert 60 <= len(server.of("register")) < 240
        server.always.clear()
        rig.source.resume()
        await rig.up()


@pytest.mark.parametrize("status", [429, 500, 503])
@in_made_time
async def test_a_rate_limit_without_retry_after_is_backed_off_from(tmp_path: Path, status: int) -> None:
    """RAE's own answers 500 to all requests of a node. Nothing is lost by it, and nothing hammers."""
    async with RaeServer().listening() as server, running(server, tmp_path, backoff_longest_s=300) as rig:
        await rig.up()
        server.add()
        claim = await rig.claim()
        server.always = dict.fromkeys(("register", "heartbeat", "poll", "result", "create", "task"), s.status(status))
        rig.source.settle(claim, succeeded({"x": 1}))
        calls = len(server.calls)
        for _ in range(90):
            rig.source.ask()
            await asyncio.sleep(20)
        assert len(server.calls) - calls < 120
        server.always.clear()
        rig.source.resume()
        await rig.up()
        await asyncio.sleep(300)
        assert server.task(claim.id)["result"] == {"x": 1}


@pytest.mark.parametrize("status", [429, 500, 503])
@in_made_time
async def test_a_poll_that_comes_too_often_is_not_followed_by_more_requests_at_once(tmp_path: Path, status: int) -> None:
    settings = {"backoff_longest_s": 300, "heartbeat_s": 3600, "lost_poll_first_s": 30}
    limited = RaeServer(always={"poll": s.status(status)})
    async with limited.listening() as server, running(server, tmp_path, **settings) as rig:
        await rig.up()
        end_s, calls = clock().now_s() + 1800, len(server.calls)
        while clock().now_s() < end_s:
            rig.source.ask()
            await asyncio.sleep(1)
        assert len(server.calls) - calls < 90
