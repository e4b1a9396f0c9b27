"""What a fleet shows of its nodes and tasks, at a real nats-server, whatever lies in the registry."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from support.nats_rig import NatsServer, needs_server, node, operator, server
from support.rae_server import in_loop

from states.ending import succeeded
from supervisor.config.schema import Nats
from supervisor.sources.nats import registry, subjects
from supervisor.sources.nats.admin.overview import overview, screen

__all__ = ["server"]  # a fixture
pytestmark = needs_server


@in_loop
async def test_a_node_has_an_entry_and_is_gone_when_it_is_no_longer_renewed(server: NatsServer, tmp_path: Path) -> None:
    described = {"state": "COOLDOWN", "since": "2026-11-24T10:00:00+00:00", "blocked_by": ["user_away", "cooldown_over"]}
    async with operator(server.url) as fleet:
        async with node(server.url, tmp_path, node_id="a.b", describe=lambda: described, heartbeat_s=0.2) as rig:
            await rig.up()
            data = await fleet.connection.last(subjects.NODES_STREAM, subjects.node_subject("a.b"))
            entry = json.loads(data or b"")
            assert entry["node"] == "a.b"
            assert entry["state"] == "COOLDOWN"
            assert entry["since"] == described["since"]
            assert entry["reason"] == "in use by its person, rests after work"
            await fleet.submit()
            rig.source.settle(await rig.claim(), succeeded({}))
            await rig.delivered()
        data = await fleet.connection.last(subjects.NODES_STREAM, subjects.node_subject("a.b"))
        entry = json.loads(data or b"")
        assert entry["availability"] == "OFFLINE"
        assert entry["done"] == 1


@in_loop
async def test_a_bad_entry_does_not_break_the_overview(server: NatsServer, tmp_path: Path) -> None:
    """Each node writes its own entry; what an operator's terminal shows of it are words."""
    odd: list[bytes] = [
        b"", b"\xff", b"[" * 60_000, b"[1]", b"{}", b'{"node": 7}',
        b'{"node": "seven", "done": "x", "reason": [1], "since": 1e999}',
        b'{"node": "red\\u001b[31m\\n", "state": {"a": 1}, "availability": null, "types": "x", "done": -1, "second": true}',
        b'{"node": "long", "reason": "' + b"x" * 60_000 + b'"}',
    ]
    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        await rig.up()
        for n, data in enumerate(odd):
            await fleet.connection.store(subjects.node_subject(f"odd-{n}"), data, f"odd-{n}")
        seen = await overview(fleet.connection)
        assert [one["node"] for one in seen["nodes"]] == ["long", "node-1", "red", "seven"]
        for line in screen(seen, 1e9, 80):
            assert len(line) <= 80
        for line in screen(seen, 1e9):
            assert line.isprintable()
            assert len(line) < 2000
        assert {type(one[name]) for one in seen["nodes"] for name in ("done", "failed", "handed_back", "second")} == {int}


@in_loop
async def test_a_fleet_parted_by_kind_is_seen_whole(server: NatsServer, tmp_path: Path) -> None:
    """One consumer a kind, none of them by the usual name."""
    async with operator(server.url) as fleet:
        await fleet.connection.api(f"CONSUMER.DELETE.{subjects.TASKS}.{subjects.CONSUMER}")
        for kind in ("echo", "sleep"):
            settings = {"durable_name": kind, "ack_policy": "explicit", "filter_subject": f"rae.tasks.{kind}.*"}
            order = {"stream_name": subjects.TASKS, "config": settings}
            await fleet.connection.api(f"CONSUMER.DURABLE.CREATE.{subjects.TASKS}.{kind}", order)
        for kind in ("echo", "echo", "sleep"):
            await fleet.submit(kind)
        async with (
            node(server.url, tmp_path, node_id="one", nats=Nats("echo")) as one,
            node(server.url, tmp_path, node_id="two", nats=Nats("sleep")) as two,
        ):
            assert (await one.claim()).type == "echo"
            assert (await two.claim()).type == "sleep"
            assert (await overview(fleet.connection))["tasks"] == {"waiting": 1, "running": 2, "results": 0, "dead": 0}


def test_a_node_is_one_line_of_80_columns_with_times_that_are_relative() -> None:
    now = datetime.fromisoformat("2026-11-24T12:05:00+00:00").timestamp()

    def line(**fields: object) -> str:
        known = {"node": "desk-2", "availability": "BUSY", "done": 12, "failed": 1, "handed_back": 3, "lost_polls": 4}
        described = {"state": "DISABLED", "since": "2026-11-24T10:00:00+00:00", "blocked_by": ["automation_on"]}
        nodes = registry.read([registry.entry({**known, **fields}, {**described, **fields}, now)])
        lines = screen({"nodes": nodes, "tasks": dict.fromkeys(("waiting", "running", "results", "dead"), 0)}, now, 80)
        assert len(lines) == 4
        assert max(map(len, lines)) <= 80
        return " ".join(lines[1].split())

    counted = "desk-2 DISABLED 2 h 5 min 12 1 3 4"
    assert line() == f"{counted} switched off there"
    assert line(paused_by="operator") == f"{counted} paused by its operator"
    until = "2026-11-24T15:05:00+02:00"
    assert line(paused_by="person", paused_until=until).startswith(f"{counted} paused by its person, 1 h")
    assert line(paused_by="person", paused_until="2026-11-24T11:00:00+00:00").startswith(f"{counted} paused by its person, 0 s")
    assert line(paused_by="eve") == f"{counted} switched off there"
    broken = line(since="no time", paused_by="operator", paused_until="1e999")
    assert broken == "desk-2 DISABLED 12 1 3 4 paused by its operator"
    assert line(node="n" * 200, done=2**52, state="S" * 200, since="1970-01-01T00:00:00+00:00").startswith("n" * 10)


def test_of_a_large_fleet_a_screen_shows_who_waits_first_and_never_loses_the_sums() -> None:
    blank = dict.fromkeys(registry.FIELDS, "") | dict.fromkeys(registry.COUNTS, 0) | {"types": []}
    nodes = [{**blank, "node": f"n{n:03}", "state": "READY", "availability": "ONLINE"} for n in range(100)]
    nodes[70]["reason"], nodes[90]["paused_by"] = "its GPU is in use", "person"
    tasks = {"waiting": 1, "running": 2, "results": 3, "dead": 4}
    lines = screen({"nodes": nodes, "tasks": tasks}, 0.0, 80, 24)
    assert len(lines) == 23
    assert [line.split()[0] for line in lines[1:4]] == ["n070", "n090", "n000"]
    assert lines[-3:] == ["… and 81 more", "", "100 nodes; tasks: 1 waiting, 2 running, 3 results, 4 dead"]
    assert len(screen({"nodes": nodes, "tasks": tasks}, 0.0, 80)) == 103
