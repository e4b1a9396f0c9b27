"""Fleets of real lifecycles, loops and links at real servers: users return, nodes die, servers die, the network is cut."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from support.constants import constants
from support.fleet_rig import KIND, Log, Member, configs
from support.namespaces import namespace
from support.nats_rig import Operator, nats_cluster, nats_server, needs_server, operator, until

from states.memory import State
from states.observation import Link
from supervisor.sources.nats import subjects

pytestmark = needs_server


def run(work: Any, limit_s: float = 150) -> None:
    asyncio.run(asyncio.wait_for(work, limit_s))


@contextlib.asynccontextmanager
async def fleet(members: list[Member]) -> AsyncIterator[None]:
    """All started; stopped in order at the end, those that still live."""
    with constants({"backoff_longest_s": 2.0}):
        try:
            for member in members:
                await member.start()
            yield
        finally:
            await asyncio.gather(*(m.stop() for m in members if m._running is not None and not m._running.done()))


def five(folder: Path, url: str, log: Log) -> list[Member]:
    """Five nodes that report to `log`."""
    return [Member(config, log) for config in configs(folder, [f"n{n}" for n in range(5)], url)]


async def all_done(boss: Operator, tasks: list[str], log: Log, timeout_s: float = 100) -> None:
    """Every task has its one result, no task is left, and whatever ran twice is known to have."""
    for task in tasks:
        assert (await boss.settled(task, timeout_s)).error is None
    end_s = time.monotonic() + 30
    while (queue := await boss.queue())[:2] != (0, 0):
        assert time.monotonic() < end_s, queue
        await asyncio.sleep(0.05)
    assert queue == (0, 0, len(tasks))
    # the server keeps the first result, and refuses the second one
    assert all(count == 1 for count in log.delivered.values()), log.delivered


def test_a_person_returns_to_one_of_three_and_its_task_goes_on_elsewhere_long_before_its_lease_ends(tmp_path: Path) -> None:
    async def work() -> None:
        with nats_server(tmp_path / "nats") as server:
            log = Log()
            members = [Member(c, log, keep_journal=True) for c in configs(tmp_path, ["one", "two", "three"], server.url)]
            async with operator(server.url, lease_s=600) as boss, fleet(members):
                await until(lambda: all(m.state is State.READY for m in members), lambda: str([m.state for m in members]))
                task = await boss.submit(KIND, {"seconds": 3})
                await until(lambda: any(m.task == task and m.state is State.RUNNING for m in members), "it runs")
                busy = next(m for m in members if m.task == task)
                busy.person_comes()
                await until(lambda: len(log.starts[task]) == 2, "it runs elsewhere")
                (gap,) = log.gaps()
                print(f"from the person's return to the task running elsewhere: {gap * 1000:.0f} ms")
                assert busy.state is State.COOLDOWN
                assert log.starts[task][0][1] == busy.name != log.starts[task][1][1]
                await all_done(boss, [task], log)
            lines = (tmp_path / "members" / busy.name / "logs").glob("decisions-*.jsonl")
            assert any('"handed-back"' in path.read_text() for path in lines)

    run(work())


def test_nodes_die_in_the_middle_of_work_and_nothing_is_lost(tmp_path: Path) -> None:
    async def work() -> None:
        with nats_server(tmp_path / "nats") as server:
            log = Log()
            members = five(tmp_path, server.url, log)
            async with operator(server.url, lease_s=2) as boss, fleet(members):
                tasks = [await boss.submit(KIND, {"seconds": 0.5}) for _ in range(20)]
                for member in members[:2]:
                    await until(lambda m=member: m.task, "it runs")
                    await member.die()
                await all_done(boss, tasks, log)
                assert len(log.gaps()) == 2

    run(work())


def test_the_server_is_killed_and_restarted_in_the_middle_of_work_and_nothing_is_lost(tmp_path: Path) -> None:
    async def work() -> None:
        with nats_server(tmp_path / "nats") as server:
            log = Log()
            members = five(tmp_path, server.url, log)
            async with operator(server.url, lease_s=2) as boss, fleet(members):
                tasks = [await boss.submit(KIND, {"seconds": 0.7}) for _ in range(25)]
                await until(lambda: all(m.task for m in members), "they work")
                server.kill()
                await until(lambda: all(m.node.source.status.outbox for m in members), "their results wait")
                server.start()
                await until(lambda: all(m.node.source.status.link is Link.UP for m in members), "all are back")
            async with operator(server.url, made=True) as boss, fleet([Member(configs(tmp_path, ["z"], server.url)[0], log)]):
                await all_done(boss, tasks, log)

    run(work())


def test_one_of_three_servers_dies_in_the_middle_of_work_and_nothing_is_lost(tmp_path: Path) -> None:
    async def work() -> None:
        with nats_cluster(tmp_path / "nats") as servers:
            log = Log()
            url = ",".join(server.url for server in servers)
            members = five(tmp_path, url, log)
            async with operator(url, replicas=3, lease_s=3) as boss, fleet(members):
                tasks = [await boss.submit(KIND, {"seconds": 0.5}) for _ in range(20)]
                await until(lambda: sum(bool(m.task) for m in members) >= 3, "they work")
                victim = next(server for server in servers if server.url != boss.connection.url)
                victim.kill()
                done = (await boss.stream(subjects.RESULTS))["messages"]
                while (await boss.stream(subjects.RESULTS))["messages"] == done:
                    await asyncio.sleep(0.05)  # work goes on with two
                victim.start()
                await all_done(boss, tasks, log)
                await until(lambda: all(m.node.source.status.link is Link.UP for m in members), "all are back")

    run(work())


def test_cut_off_from_half_of_the_nodes_in_the_middle_of_work_nothing_is_lost(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        with namespace(cables=2) as apart, nats_server(tmp_path / "nats", host="0.0.0.0", prefix=apart.prefix) as server:
            log = Log()
            urls = [f"nats://{host}:{server.port}" for host in apart.theirs]
            halves = [
                [Member(c, log) for c in configs(tmp_path / side, [f"{side}{n}" for n in range(3)], url)]
                for side, url in zip("ab", urls, strict=True)
            ]
            async with operator(urls[0], lease_s=2) as boss, fleet(halves[0] + halves[1]):
                tasks = [await boss.submit(KIND, {"seconds": 1.5}) for _ in range(18)]
                await until(lambda: all(m.task for m in halves[1]), "the other half works")
                on_the_other_side = {m.task for m in halves[1]}
                apart.ip("link", "set", "cable1", "down")
                # their tasks go on there, unheard, and start again on our side
                await until(lambda: all(len(log.starts[t]) >= 2 for t in on_the_other_side), "they run here as well", 60)
                await until(lambda: all(m.node.source.status.link is Link.DOWN for m in halves[1]), "they know", 60)
                apart.ip("link", "set", "cable1", "up")
                await all_done(boss, tasks, log)
                await until(lambda: all(m.node.source.status.link is Link.UP for m in halves[1]), "they are back", 60)
                await until(lambda: all(m.node.source.status.outbox == 0 for m in halves[1]), "all is delivered", 60)
                assert log.events["done-twice"] == len(on_the_other_side), log.events
                print(f"{len(tasks)} tasks, {len(on_the_other_side)} done on both sides, all known: {dict(log.events)}")
                await all_done(boss, tasks, log)

    run(work())
