"""The link of a node to a real nats-server: given up or kept, what is missing said in words, and no busy loop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.nats_rig import NatsServer, Operator, needs_server, node, operator, server, until
from support.rae_server import in_loop

from states.ending import succeeded
from states.observation import Link
from supervisor.sources.nats import subjects
from supervisor.sources.nats.connection import Connection

__all__ = ["server"]  # a fixture
pytestmark = needs_server


@in_loop
async def test_given_up_after_the_first_failure_until_resumed(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url), node(server.url, tmp_path, retry=False) as rig:
        await rig.up()
        server.kill()
        await until(lambda: rig.source.status.link is Link.LOST, "given up")
        assert "retry_on_disconnect" in rig.source.status.reason
        assert rig.source.status.lost_polls == 0
        server.start()
        rig.source.resume()
        await rig.up()


@in_loop
async def test_a_poll_that_the_server_took_and_did_not_answer_is_counted_and_the_fleet_sees_it(
    server: NatsServer, tmp_path: Path
) -> None:
    async with operator(server.url) as fleet, node(server.url, tmp_path, poll_s=600) as rig:
        await rig.up()
        assert rig.source.ask()
        await fleet.asked_for()
        server.kill()
        await rig.saw("poll-lost")
        assert rig.source.status.lost_polls == 1
        server.start()
        await rig.up()
        async with operator(server.url, made=True) as again:
            entry = json.loads(await again.connection.last(subjects.NODES_STREAM, subjects.node_subject("node-1")) or b"")
        assert entry["lost_polls"] == 1


@in_loop
async def test_the_status_names_what_is_missing(server: NatsServer, tmp_path: Path) -> None:
    async with node(server.url, tmp_path) as rig:
        status = lambda: rig.source.status  # noqa: E731
        await until(lambda: "see deploy/fleet" in status().reason and status().next_try_s, lambda: str(status()))
        assert status().link is Link.DOWN
    async with node("nats://127.0.0.1:9", tmp_path) as rig:
        await until(lambda: "cannot be reached" in rig.source.status.reason, lambda: rig.source.status.reason)
    async with operator(server.url) as fleet:
        await fleet.connection.api(f"STREAM.DELETE.{subjects.RESULTS}")
        async with node(server.url, tmp_path) as rig:
            await fleet.submit()
            rig.source.settle(await rig.claim(), succeeded({}))
            await until(lambda: "set it up" in rig.source.status.reason, lambda: rig.source.status.reason)
            assert rig.source.status.outbox == 1


@in_loop
async def test_the_outbox_is_bounded_by_asking_for_no_more(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.sources.network_source.MAX_WAITING", 1)
    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        await fleet.submit()
        await fleet.submit()
        claim = await rig.claim()
        rig.source.settle(claim, succeeded({}))
        assert not rig.source.ask()
        await rig.delivered()
        assert rig.source.ask()


@in_loop
async def test_a_consumer_that_is_deleted_under_a_waiting_poll_is_no_busy_loop(server: NatsServer, tmp_path: Path) -> None:
    async with operator(server.url) as fleet, node(server.url, tmp_path, poll_s=600) as rig:
        await rig.up()
        assert rig.source.ask()
        client = rig.source._connection._client
        assert client is not None
        before = client.stats["out_msgs"]
        await until(lambda: client.stats["out_msgs"] > before + 1, "it waits for work")
        before = client.stats["out_msgs"]
        await fleet.connection.api(f"CONSUMER.DELETE.{subjects.TASKS}.{subjects.CONSUMER}")
        await until(lambda: rig.source.status.link is Link.DOWN, "down")
        assert client.stats["out_msgs"] < before + 20
        await until(lambda: "has no consumer nodes" in rig.source.status.reason, lambda: rig.source.status.reason)
    async with operator(server.url), node(server.url, tmp_path) as rig:
        await rig.up()


SOUND = {"ack_policy": "explicit", "ack_wait": 10**10, "max_deliver": 50}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({}, "unknown form"),
        ({"config": []}, "unknown form"),
        ({"config": {**SOUND, "ack_wait": 0}}, "unknown form"),
        ({"config": {**SOUND, "ack_wait": -1}}, "unknown form"),
        ({"config": {**SOUND, "ack_wait": "x"}}, "unknown form"),
        ({"config": {**SOUND, "ack_wait": None}}, "unknown form"),
        ({"config": {**SOUND, "ack_wait": float("inf")}}, "unknown form"),
        ({"config": {**SOUND, "max_deliver": float("inf")}}, "unknown form"),
        ({"config": {**SOUND, "max_deliver": []}}, "unknown form"),
        ({"config": {**SOUND, "ack_policy": "none"}}, "ack_policy"),
        ({"config": {**SOUND, "ack_policy": "all"}}, "ack_policy"),
    ],
    ids=str,
)
@in_loop
async def test_a_consumer_that_gives_no_leases_is_not_asked_for_work(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], why: str
) -> None:
    async def api(self: Connection, name: str, body: Any = None) -> dict[str, Any]:
        return answer

    async with operator(server.url):
        monkeypatch.setattr(Connection, "api", api)
        async with node(server.url, tmp_path) as rig:
            await until(lambda: why in rig.source.status.reason, lambda: rig.source.status.reason)
            assert "consumer nodes" in rig.source.status.reason
            assert not rig.source.ask()


@pytest.mark.parametrize("mute", [subjects.ANY_RESULT.removesuffix("*"), f"$KV.{subjects.NODES}"], ids=["results", "registry"])
@in_loop
async def test_a_stop_says_offline_and_delivers_whichever_of_them_fails(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mute: str
) -> None:
    genuine = Connection.request
    stopping = False

    async def request(self: Connection, subject: str, *of: Any, **more: Any) -> Any:
        if stopping and subject.startswith(mute):
            await asyncio.Event().wait()
        return await genuine(self, subject, *of, **more)

    async def written(fleet: Operator) -> str:
        data = await fleet.connection.last(subjects.NODES_STREAM, subjects.node_subject("node-1"))
        return str(json.loads(data or b"{}").get("availability"))

    async with operator(server.url) as fleet:
        async with node(server.url, tmp_path, heartbeat_s=600, stop_s=1.0) as rig:
            while (await fleet.stream(subjects.NODES_STREAM))["last_seq"] < 2:  # there is no news left to write
                await asyncio.sleep(0.02)
            task = await fleet.submit()
            claim = await rig.claim()
            monkeypatch.setattr(Connection, "request", request)
            stopping = True
            rig.source.settle(claim, succeeded({}))
        stopping = False
        if mute.startswith("$KV"):
            assert await fleet.result(task) is not None
        else:
            assert await written(fleet) == "OFFLINE"
            assert "undelivered" in rig.names()
