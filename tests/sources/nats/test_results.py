"""Results on their way to a fleet, at a real nats-server: stored once, whatever answer is lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.nats_rig import NatsServer, Operator, needs_server, node, operator, server, until
from support.rae_server import in_loop

from states.ending import succeeded
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin.setup import DEFINITIONS
from supervisor.sources.nats.connection import ACK, Connection
from supervisor.sources.nats.errors import Refused

__all__ = ["server"]  # a fixture
pytestmark = needs_server


async def forgetful(fleet: Operator) -> None:
    """The server no longer knows message ids of a moment ago, as after its two minutes."""
    streams = json.loads(DEFINITIONS.read_text())["streams"]
    results = next(stream for stream in streams if stream["name"] == subjects.RESULTS)
    settings = {**results, "num_replicas": 1, "duplicate_window": 100_000_000}
    await fleet.connection.api(f"STREAM.UPDATE.{subjects.RESULTS}", settings)


@in_loop
async def test_a_result_whose_acknowledgement_fails_is_not_taken_for_another_nodes(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, failed, free = Connection.acknowledge, asyncio.Event(), asyncio.Event()

    async def acknowledge(self: Connection, reply: str, what: bytes, timeout_s: float = 5.0) -> str:
        if what == ACK and not free.is_set():
            failed.set()
            raise RequestError("the connection failed")
        return await genuine(self, reply, what, timeout_s)

    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        await forgetful(fleet)
        task = await fleet.submit()
        claim = await rig.claim()
        monkeypatch.setattr(Connection, "acknowledge", acknowledge)
        rig.source.settle(claim, succeeded({"x": 1}))
        await failed.wait()
        await asyncio.sleep(0.3)  # the server forgets the message's id
        free.set()
        await rig.delivered()
        assert (await fleet.settled(task)).result == {"x": 1}
        assert await fleet.queue() == (0, 0, 1)
        assert "delivered" in rig.names()
        assert "done-twice" not in rig.names()
        assert rig.source._outbox.second == 0


@in_loop
async def test_a_result_whose_answer_was_lost_may_be_the_one_that_is_there(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Connection.store
    tries: list[str] = []

    async def store(self: Connection, subject: str, *of: Any, **more: Any) -> bool:
        new = await genuine(self, subject, *of, **more)
        if subject.startswith("rae.results"):
            tries.append(subject)
            if len(tries) == 1:
                await asyncio.sleep(0.3)
                raise RequestError("gives no answer")
        return new

    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        await forgetful(fleet)
        task = await fleet.submit()
        claim = await rig.claim()
        monkeypatch.setattr(Connection, "store", store)
        rig.source.settle(claim, succeeded({"x": 1}))
        await rig.delivered()
        assert (await fleet.settled(task)).result == {"x": 1}
        assert "or this one, whose answer was lost" in (await rig.saw("done-twice"))["reason"]


@in_loop
async def test_a_fleet_that_refuses_each_time_with_another_text_is_no_busy_loop(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Connection.store
    refusals: list[str] = []

    async def store(self: Connection, subject: str, *of: Any, **more: Any) -> bool:
        if subject.startswith("rae.results") and len(refusals) < 100:
            refusals.append(subject)
            raise Refused(f"no, for the {len(refusals)}th time", status=400)
        return await genuine(self, subject, *of, **more)

    async with operator(server.url) as fleet, node(server.url, tmp_path, backoff_longest_s=60) as rig:
        await fleet.submit()
        claim = await rig.claim()
        monkeypatch.setattr(Connection, "store", store)
        rig.source.settle(claim, succeeded({"x": 1}))
        await until(lambda: "down" in rig.names()[1:], "the link is down")
        assert len(refusals) == 2, "the result, and the reason in its place"
        assert rig.names().count("outcome-refused") == 1
        refusals.extend(["enough"] * 100)
        rig.source.resume()
        await rig.delivered()
