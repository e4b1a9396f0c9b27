"""What no node can run ends where an operator finds it, and its submitter learns it; at a real nats-server."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from support.nats_rig import NatsServer, needs_server, node, operator, server, until
from support.rae_server import in_loop

from states.ending import handed_back
from states.observation import Link
from supervisor.sources.nats import subjects

__all__ = ["server"]  # a fixture
pytestmark = needs_server


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>", "not JSON"),
        (b"[1]", "not an object"),
        (b'{"id": "x", "type": "echo", "payload": {}}', "not a UUID"),
        (b'{"id": "%ID%", "type": "", "payload": {}}', "no usable type"),
        (b'{"id": "%ID%", "type": "echo", "payload": []}', "not an object"),
        (b'{"id": "%ID%", "type": "echo", "payload": {"x": NaN}}', "not JSON"),
        (b'{"id": "%ID%", "type": "echo", "payload": {}, "priority": "high"}', "not an integer"),
        (b"[" * 20_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
@in_loop
async def test_poison_is_never_run_and_is_kept_where_an_operator_finds_it(
    server: NatsServer, tmp_path: Path, data: bytes, why: str
) -> None:
    task = str(uuid4())
    body = data.replace(b"%ID%", task.encode())
    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        await rig.up()
        await fleet.raw(body, task_id=task)
        assert await rig.poll() is None
        assert why in (await rig.saw("dead-letter"))["reason"]
        await until(lambda: not rig.source.asking, "over")
        assert (await fleet.queue())[:2] == (0, 0)
        assert (await fleet.stream(subjects.DEAD))["messages"] == 1
        if b"%ID%" in data and why != "not JSON":
            assert "dead: " in str((await fleet.settled(task)).error)
        assert rig.source.status.link is Link.UP


@in_loop
async def test_a_task_that_every_node_gives_up_ends_as_a_dead_letter_that_its_submitter_sees(
    server: NatsServer, tmp_path: Path
) -> None:
    async with operator(server.url, max_deliver=4) as fleet, node(server.url, tmp_path) as rig:
        task = await fleet.submit()
        for _ in range(3):
            rig.source.hand_back(await rig.claim(), handed_back("again"), "resubmit")
        while "dead-letter" not in rig.names():
            assert await rig.poll() is None
        assert "4 deliveries" in (await rig.saw("dead-letter"))["reason"]
        assert str((await fleet.settled(task)).error).startswith("dead: given up after 4 deliveries")
        assert (await fleet.queue())[0] == 0


@in_loop
async def test_poison_that_is_too_large_for_a_dead_letter_ends_all_the_same(server: NatsServer, tmp_path: Path) -> None:
    """With the reason beside it, it is more than the server takes; left in the queue, it would fail every node's poll."""
    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        await rig.up()
        await fleet.raw(b"x" * (fleet.connection.max_payload - 63), task_id=str(uuid4()))
        assert await rig.poll() is None
        assert "not JSON" in (await rig.saw("dead-letter"))["reason"]
        assert (await fleet.queue())[:2] == (0, 0)
        assert (await fleet.stream(subjects.DEAD))["messages"] == 1
        assert "down" not in rig.names()[1:]
