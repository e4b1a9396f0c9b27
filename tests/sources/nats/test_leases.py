"""Leases at a real nats-server: who dies or is cut off loses its task to another node; what is done twice is known to be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.nats_rig import NatsServer, needs_server, node, operator, server, until
from support.rae_server import in_loop

from states.ending import failed, handed_back, succeeded
from states.observation import Link
from supervisor.sources.base import Claim

__all__ = ["server"]  # a fixture
pytestmark = needs_server
LEASE_S = 1.5


@in_loop
async def test_a_lease_is_renewed_as_long_as_the_task_is_here_and_lapses_with_its_node(
    server: NatsServer, tmp_path: Path
) -> None:
    async with operator(server.url, lease_s=2 * LEASE_S) as fleet, node(server.url, tmp_path, node_id="two") as two:
        task = await fleet.submit("sleep")
        async with node(server.url, tmp_path, node_id="one", stop_s=None) as one:
            claim = await one.claim()
            lease = one.source._leases.get(task)
            assert lease is not None
            first_end_s = lease.ends_s
            while one.source._clock.now_s() < first_end_s + 1:
                assert await two.poll() is None
            assert claim.id == task
            assert not lease.lost
        # the power is cut
        again = await two.claim()
        assert again.id == task
        two.source.settle(again, failed("it failed"))
        assert (await fleet.settled(task)).error == "it failed"


@in_loop
async def test_after_a_crash_the_note_is_dropped_for_the_lease_settles_the_task(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url, lease_s=LEASE_S) as fleet:
        task = await fleet.submit()
        async with node(server.url, tmp_path, stop_s=None) as rig:
            await rig.claim()
        async with node(server.url, tmp_path) as rig:
            assert (await rig.saw("note-found"))["task"] == task
            assert (await rig.claim()).id == task


@in_loop
async def test_done_on_both_sides_of_a_cut_the_first_result_stands_and_the_second_is_known(
    server: NatsServer, tmp_path: Path
) -> None:
    async with (
        operator(server.url, lease_s=LEASE_S) as fleet,
        node(server.url, tmp_path, node_id="one") as one,
        node(server.url, tmp_path, node_id="two") as two,
    ):
        task = await fleet.submit()
        claim = await one.claim()
        one.source._leases.length_s = 1e9  # it does not know that nobody hears its renewals
        again = await two.claim()
        assert again.id == task
        two.source.settle(again, succeeded({"by": 2}))
        assert (await fleet.settled(task)).result == {"by": 2}
        one.source.settle(claim, succeeded({"by": 1}))
        assert (await one.saw("done-twice"))["task"] == task
        assert (await fleet.settled(task)).result == {"by": 2}
        assert one.source._outbox.second == 1
        assert two.source._outbox.second == 0
        assert await fleet.queue() == (0, 0, 1)


@in_loop
async def test_a_server_killed_in_the_middle_of_work_and_restarted_loses_nothing(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url, lease_s=LEASE_S) as fleet, node(server.url, tmp_path) as rig:
        tasks = [await fleet.submit("echo", {"n": n}) for n in range(5)]
        first = await rig.claim()
        server.kill()
        rig.source.settle(first, succeeded({"n": 0}))
        await until(lambda: rig.source.status.link is Link.DOWN, "down")
        assert not rig.source.ask()
        assert rig.source.status.outbox == 1
        await asyncio.sleep(LEASE_S)
        server.start()
        await rig.delivered()
        while len(done := {e["task"] for e in rig.events if e["event"] == "delivered"}) < len(tasks):
            claim = await rig.poll()
            if claim is not None:
                rig.source.settle(claim, succeeded({}))
            await rig.delivered()
        assert done == set(tasks)
    async with operator(server.url, made=True) as fleet:
        assert await fleet.queue() == (0, 0, 5)
        for task in tasks:
            assert (await fleet.settled(task)).error is None


@in_loop
async def test_a_task_whose_lease_ends_while_its_place_is_saved_is_not_taken_from_the_next_node(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word of ours would give back what is another node's by then, and a third one would have it as well."""
    async with (
        operator(server.url, lease_s=LEASE_S) as fleet,
        node(server.url, tmp_path, node_id="one") as one,
        node(server.url, tmp_path, node_id="two") as two,
    ):
        task = await fleet.submit()
        claim = await one.claim()
        genuine, free = one.source._save, asyncio.Event()

        async def slow(*of: Any) -> None:
            await free.wait()
            await genuine(*of)

        monkeypatch.setattr(one.source, "_save", slow)
        one.source.hand_back(claim, handed_back("the person came back", 1), "resubmit")
        assert (await two.claim()).id == task
        free.set()
        assert "lease has ended" in (await one.saw("handed-back-by-lease"))["reason"]
        assert await one.poll() is None
        assert await fleet.queue() == (1, 1, 0)


@in_loop
async def test_a_lease_is_renewed_from_the_moment_that_the_task_is_here(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the place that it has saved, or the note, keeps the node waiting."""
    async with (
        operator(server.url, lease_s=LEASE_S) as fleet,
        node(server.url, tmp_path, node_id="one") as one,
        node(server.url, tmp_path, node_id="two") as two,
    ):
        task = await fleet.submit()
        one.source.hand_back(await one.claim(), handed_back("the person came back"), "resubmit")
        await one.saw("handed-back")
        genuine, free = two.source._with_saved, asyncio.Event()

        async def slow(claim: Claim, lease: str) -> Claim:
            await free.wait()
            return await genuine(claim, lease)

        monkeypatch.setattr(two.source, "_with_saved", slow)
        assert two.source.ask()
        lease = await until(lambda: two.source._leases.get(task), "it is held")
        first_end_s = lease.ends_s
        while two.source._clock.now_s() < first_end_s + 1:
            assert await one.poll() is None
        free.set()
        await until(lambda: two.source.waiting, "it can be taken")
