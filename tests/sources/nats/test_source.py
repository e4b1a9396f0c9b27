"""A task's way through a node of a fleet, at a real nats-server: claimed, done, passed on, given back with what it saved."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from support.nats_rig import NatsServer, cut, needs_server, node, operator, server, until
from support.rae_server import in_loop

from states.ending import handed_back, succeeded
from supervisor.sources.base import Availability
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin.setup import DEFINITIONS
from supervisor.sources.nats.source import pass_on

__all__ = ["server"]  # a fixture
pytestmark = needs_server


@in_loop
async def test_a_task_is_claimed_done_and_leaves_the_queue_after_its_result(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        await rig.up()
        assert await rig.poll() is None
        task = await fleet.submit("echo", {"n": 1})
        claim = await rig.claim()
        assert (claim.id, claim.type, claim.payload) == (task, "echo", {"n": 1})
        assert await fleet.queue() == (1, 1, 0)
        assert rig.source.take() is None
        assert rig.source.waiting is None
        note = json.loads((tmp_path / "node-1" / "task.json").read_text())
        assert [(entry["id"], entry["type"]) for entry in note["tasks"]] == [(task, "echo")]
        rig.source.settle(claim, succeeded({"sum": 2, "odd": "a\0b"}))
        result = await fleet.settled(task)
        assert (result.status, result.result, result.node) == ("COMPLETED", {"sum": 2, "odd": "a\ufffdb"}, "node-1")
        await rig.delivered()
        assert await fleet.queue() == (0, 0, 1)
        assert not (tmp_path / "node-1" / "task.json").exists()


@in_loop
async def test_a_waiting_poll_gets_a_task_at_once_and_a_node_that_is_not_ready_asks_no_longer(
    server: NatsServer, tmp_path: Path
) -> None:
    async with operator(server.url) as fleet, node(server.url, tmp_path, poll_s=600) as rig:
        await rig.up()
        assert rig.source.ask()
        assert not rig.source.ask()
        await fleet.asked_for()
        task = await fleet.submit()
        await until(lambda: rig.source.waiting is not None, "the claim")
        claim = rig.source.take()
        assert claim is not None
        assert claim.id == task
        rig.source.settle(claim, succeeded({}))
        await rig.delivered()
        assert rig.source.ask()
        await fleet.asked_for()
        assert rig.source.asking
        rig.source.announce(Availability.BUSY)
        await until(lambda: not rig.source.asking, "the poll ends")
        await fleet.submit()
        await asyncio.sleep(0.2)
        assert await fleet.queue() == (1, 0, 1)
        assert rig.source.ask()  # in RUNNING what is there is wanted, and no waiting
        await until(lambda: rig.source.waiting is not None, "the claim")


@in_loop
async def test_given_back_it_goes_on_elsewhere_within_a_moment(server: NatsServer, tmp_path: Path) -> None:
    async with (
        operator(server.url, lease_s=600) as fleet,
        node(server.url, tmp_path, node_id="one") as one,
        node(server.url, tmp_path, node_id="two", poll_s=600) as two,
    ):
        await one.up()
        await two.up()
        task = await fleet.submit("sleep")
        claim = await one.claim()
        assert two.source.ask()
        await fleet.asked_for()
        began_s = time.monotonic()
        one.source.hand_back(claim, handed_back("the person came back"), "resubmit")
        await until(lambda: two.source.waiting is not None, "the claim elsewhere, long before the lease or the poll ends")
        print(f"given back and claimed elsewhere after {(time.monotonic() - began_s) * 1000:.1f} ms")
        taken = two.source.take()
        assert taken is not None
        assert taken.id == task
        two.source.settle(taken, succeeded({}))
        assert (await fleet.settled(task)).node == "two"
        assert (await one.saw("handed-back"))["reason"] == "the person came back"


@in_loop
async def test_what_a_task_has_saved_goes_with_it_to_the_next_node(server: NatsServer, tmp_path: Path) -> None:
    async with (
        operator(server.url, lease_s=30) as fleet,
        node(server.url, tmp_path, node_id="one") as one,
        node(server.url, tmp_path, node_id="two") as two,
    ):
        task = await fleet.submit("sleep", {"n": 1})
        for place, (here, there) in enumerate([(one, two), (two, one), (one, two)]):
            claim = await here.claim()
            assert claim.payload == ({"n": 1} if not place else {"n": 1, "rae_state": {"step": place - 1}})
            here.source.hand_back(claim, handed_back("the person came back", {"step": place}), "resubmit")
            assert there.source.waiting is None
        last = await two.claim()
        assert last.payload == {"n": 1, "rae_state": {"step": 2}}
        # what cannot be saved is lost, and the task is given back all the same
        await fleet.connection.api(f"STREAM.DELETE.{subjects.PLACES}")
        two.source.hand_back(last, handed_back("back", {"step": 9}), "resubmit")
        await two.saw("place-lost")
        again = await one.claim()
        assert (again.id, again.payload) == (task, {"n": 1})
        one.source.settle(again, succeeded({}))
        assert (await fleet.settled(task)).node == "one"


@in_loop
async def test_a_type_that_this_node_does_not_run_goes_to_one_that_does(server: NatsServer, tmp_path: Path) -> None:
    async with (
        operator(server.url) as fleet,
        node(server.url, tmp_path, node_id="one") as one,
        node(server.url, tmp_path, node_id="two", types=("render",)) as two,
    ):
        task = await fleet.submit("render")
        assert await one.poll() is None
        await one.saw("claim-passed-on")
        assert (await two.claim()).id == task


def test_a_task_that_nobody_runs_now_outlasts_an_evening() -> None:
    """One node that does not run it, beside one that does and is not free, must not use up what the fleet gives a task."""
    most = json.loads(DEFINITIONS.read_text())["consumers"][0]["max_deliver"]
    delays = [json.loads(pass_on(count).removeprefix(b"-NAK "))["delay"] / 1e9 for count in range(1, most)]
    assert delays[0] == 2
    assert delays == sorted(delays)
    assert max(delays) == 300
    assert sum(delays) > 3 * 3600
    assert pass_on(10**9) == pass_on(most)


@in_loop
async def test_a_result_that_is_too_large_for_the_fleet_is_a_failure_with_that_reason(
    server: NatsServer, tmp_path: Path
) -> None:
    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        task = await fleet.submit()
        rig.source.settle(await rig.claim(), succeeded({"text": "x" * (9 << 20)}))
        assert "too large" in str((await fleet.settled(task)).error)


@in_loop
async def test_stopping_gives_back_what_was_not_taken(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url, lease_s=60) as fleet, node(server.url, tmp_path, node_id="two") as two:
        task = await fleet.submit()
        async with node(server.url, tmp_path, node_id="one") as one:
            await until(one.source.ask, "asked")
            await until(lambda: one.source.waiting is not None, "waiting")
        assert (await two.claim()).id == task
        await cut(two.source)


@in_loop
async def test_a_task_has_one_outcome(server: NatsServer, tmp_path: Path) -> None:
    """The first stands: what is settled is not given back as well, and the other way round."""
    async with operator(server.url, lease_s=60) as fleet, node(server.url, tmp_path) as rig:
        task = await fleet.submit()
        claim = await rig.claim()
        rig.source.settle(claim, succeeded({"x": 1}))
        rig.source.hand_back(claim, handed_back("the person came back"), "resubmit")
        rig.source.hand_back(claim, handed_back("the person came back"), "fail")
        await rig.delivered()
        assert await rig.poll() is None
        assert (await fleet.settled(task)).result == {"x": 1}
        assert rig.names().count("outcome-ignored") == 2
        assert "handed-back" not in rig.names()
        await fleet.submit()
        claim = await rig.claim()
        rig.source.hand_back(claim, handed_back("the person came back"), "resubmit")
        rig.source.settle(claim, succeeded({"x": 1}))
        await rig.saw("handed-back")
        assert rig.names().count("outcome-ignored") == 3
        assert rig.source.counts == {"done": 1, "failed": 0, "handed_back": 1}
        assert rig.source._outbox.second == 0
