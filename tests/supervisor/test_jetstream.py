"""The JetStream source at a real nats-server: leases, giving back, poison, results stored once, and a server that goes away."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nats_rig import NatsServer, cut, nats_server, needs_server, node, operator, until

from states.observation import Link
from supervisor.fleet import layout
from supervisor.fleet.forms import Poison, decode_result, decode_task, encode_task
from supervisor.fleet.overview import overview, screen
from supervisor.fleet.setup import DEFINITIONS
from supervisor.settings import Nats
from supervisor.sources.base import Availability
from supervisor.sources.ids import is_id
from supervisor.sources.jetstream import unfit

pytestmark = needs_server
LEASE_S = 1.5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as one:
        yield one


def run(work: Any) -> None:
    """In a loop of its own, with an end."""

    async def bounded() -> None:
        async with asyncio.timeout(90):
            await work

    asyncio.run(bounded())


def test_a_task_is_claimed_done_and_leaves_the_queue_after_its_result(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
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
            rig.source.settle(claim, {"sum": 2, "odd": "a\0b"}, None)
            result = await fleet.settled(task)
            assert (result.status, result.result, result.node) == ("COMPLETED", {"sum": 2, "odd": "a\ufffdb"}, "node-1")
            await rig.delivered()
            assert await fleet.queue() == (0, 0, 1)
            assert not (tmp_path / "node-1" / "task.json").exists()

    run(work())


def test_a_waiting_poll_gets_a_task_at_once_and_a_node_that_is_not_ready_asks_no_longer(
    server: NatsServer, tmp_path: Path
) -> None:
    async def work() -> None:
        async with operator(server.url) as fleet, node(server.url, tmp_path, poll_s=600) as rig:
            await rig.up()
            assert rig.source.ask()
            assert not rig.source.ask()
            await asyncio.sleep(0.2)
            task = await fleet.submit()
            await until(lambda: rig.source.waiting is not None, "the claim", 5)
            claim = rig.source.take()
            assert claim is not None
            assert claim.id == task
            rig.source.settle(claim, {}, None)
            await rig.delivered()
            assert rig.source.ask()
            await asyncio.sleep(0.2)
            assert rig.source.asking
            rig.source.announce(Availability.BUSY)
            await until(lambda: not rig.source.asking, "the poll ends", 5)
            await fleet.submit()
            await asyncio.sleep(0.2)
            assert await fleet.queue() == (1, 0, 1)
            assert rig.source.ask()  # in RUNNING what is there is wanted, and no waiting
            await until(lambda: rig.source.waiting is not None, "the claim", 5)

    run(work())


def test_given_back_it_goes_on_elsewhere_within_a_moment(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            operator(server.url, lease_s=30) as fleet,
            node(server.url, tmp_path, node_id="one") as one,
            node(server.url, tmp_path, node_id="two", poll_s=600) as two,
        ):
            await one.up()
            await two.up()
            task = await fleet.submit("sleep")
            claim = await one.claim()
            assert two.source.ask()
            began_s = time.monotonic()
            one.source.hand_back(claim, "the person came back", "resubmit")
            await until(lambda: two.source.waiting is not None, "the claim elsewhere", 5)
            took_s = time.monotonic() - began_s
            assert took_s < 1.0
            print(f"given back and claimed elsewhere after {took_s * 1000:.1f} ms")
            taken = two.source.take()
            assert taken is not None
            assert taken.id == task
            two.source.settle(taken, {}, None)
            assert (await fleet.settled(task)).node == "two"
            assert (await one.saw("handed-back"))["reason"] == "the person came back"

    run(work())


def test_what_a_task_has_saved_goes_with_it_to_the_next_node(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            operator(server.url, lease_s=30) as fleet,
            node(server.url, tmp_path, node_id="one") as one,
            node(server.url, tmp_path, node_id="two") as two,
        ):
            task = await fleet.submit("sleep", {"n": 1})
            for place, (here, there) in enumerate([(one, two), (two, one), (one, two)]):
                claim = await here.claim()
                assert claim.payload == ({"n": 1} if not place else {"n": 1, "rae_state": {"step": place - 1}})
                saved = replace(claim, payload={**claim.payload, "rae_state": {"step": place}})
                here.source.hand_back(saved, "the person came back", "resubmit")
                assert there.source.waiting is None
            last = await two.claim()
            assert last.payload == {"n": 1, "rae_state": {"step": 2}}
            # what cannot be saved is lost, and the task is given back all the same
            await fleet.wire.api(f"STREAM.DELETE.{layout.PLACES}")
            two.source.hand_back(replace(last, payload={**last.payload, "rae_state": {"step": 9}}), "back", "resubmit")
            await two.saw("place-lost")
            again = await one.claim()
            assert (again.id, again.payload) == (task, {"n": 1})
            one.source.settle(again, {}, None)
            assert (await fleet.settled(task)).node == "one"

    run(work())


def test_a_lease_is_renewed_as_long_as_the_task_is_here_and_lapses_with_its_node(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with operator(server.url, lease_s=LEASE_S) as fleet, node(server.url, tmp_path, node_id="two") as two:
            task = await fleet.submit("sleep")
            async with node(server.url, tmp_path, node_id="one", stop_s=None) as one:
                claim = await one.claim()
                end_s = time.monotonic() + 2.5 * LEASE_S
                while time.monotonic() < end_s:
                    assert await two.poll() is None
                assert claim.id == task
            began_s = time.monotonic()  # the power is cut
            again = await two.claim()
            assert again.id == task
            assert time.monotonic() - began_s < LEASE_S + 2
            two.source.settle(again, {}, "it failed")
            assert (await fleet.settled(task)).error == "it failed"

    run(work())


def test_after_a_crash_the_note_is_dropped_for_the_lease_settles_the_task(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with operator(server.url, lease_s=LEASE_S) as fleet:
            task = await fleet.submit()
            async with node(server.url, tmp_path, stop_s=None) as rig:
                await rig.claim()
            async with node(server.url, tmp_path) as rig:
                assert not rig.source.crash_note
                assert (await rig.saw("note-found"))["task"] == task
                assert (await rig.claim()).id == task

    run(work())


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
def test_poison_is_never_run_and_is_kept_where_an_operator_finds_it(
    server: NatsServer, tmp_path: Path, data: bytes, why: str
) -> None:
    async def work() -> None:
        task = str(uuid4())
        body = data.replace(b"%ID%", task.encode())
        async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
            await rig.up()
            await fleet.raw(body, task_id=task)
            assert await rig.poll() is None
            assert why in (await rig.saw("dead-letter"))["reason"]
            await until(lambda: not rig.source.asking, "over")
            assert (await fleet.queue())[:2] == (0, 0)
            assert (await fleet.stream(layout.DEAD))["messages"] == 1
            if b"%ID%" in data and why != "not JSON":
                assert "dead: " in str((await fleet.settled(task)).error)
            assert rig.source.status.link is Link.UP

    run(work())


def test_a_task_that_every_node_gives_up_ends_as_a_dead_letter_that_its_submitter_sees(
    server: NatsServer, tmp_path: Path
) -> None:
    async def work() -> None:
        async with operator(server.url, max_deliver=4) as fleet, node(server.url, tmp_path) as rig:
            task = await fleet.submit()
            for _ in range(3):
                rig.source.hand_back(await rig.claim(), "again", "resubmit")
            await until(rig.source.ask, "asked")
            assert "4 deliveries" in (await rig.saw("dead-letter"))["reason"]
            assert str((await fleet.settled(task)).error).startswith("dead: given up after 4 deliveries")
            assert (await fleet.queue())[0] == 0

    run(work())


def test_a_type_that_this_node_does_not_run_goes_to_one_that_does(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            operator(server.url) as fleet,
            node(server.url, tmp_path, node_id="one") as one,
            node(server.url, tmp_path, node_id="two", types=("render",)) as two,
        ):
            task = await fleet.submit("render")
            assert await one.poll() is None
            await one.saw("claim-passed-on")
            assert (await two.claim()).id == task

    run(work())


def test_done_on_both_sides_of_a_cut_the_first_result_stands_and_the_second_is_known(
    server: NatsServer, tmp_path: Path
) -> None:
    async def work() -> None:
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
            two.source.settle(again, {"by": 2}, None)
            assert (await fleet.settled(task)).result == {"by": 2}
            one.source.settle(claim, {"by": 1}, None)
            assert (await one.saw("done-twice"))["task"] == task
            assert (await fleet.settled(task)).result == {"by": 2}
            assert one.source.counts["second"] == 1
            assert two.source.counts["second"] == 0
            assert await fleet.queue() == (0, 0, 1)

    run(work())


def test_a_server_killed_in_the_middle_of_work_and_restarted_loses_nothing(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with operator(server.url, lease_s=LEASE_S) as fleet, node(server.url, tmp_path) as rig:
            tasks = [await fleet.submit("echo", {"n": n}) for n in range(5)]
            first = await rig.claim()
            server.kill()
            rig.source.settle(first, {"n": 0}, None)
            await until(lambda: rig.source.status.link is Link.DOWN, "down")
            assert not rig.source.ask()
            assert rig.source.status.outbox == 1
            await asyncio.sleep(LEASE_S)
            server.start()
            await rig.delivered()
            while len(done := {e["task"] for e in rig.events if e["event"] == "delivered"}) < len(tasks):
                claim = await rig.poll()
                if claim is not None:
                    rig.source.settle(claim, {}, None)
                await rig.delivered()
            assert done == set(tasks)
        async with operator(server.url, made=True) as fleet:
            assert await fleet.queue() == (0, 0, 5)
            for task in tasks:
                assert (await fleet.settled(task)).error is None

    run(work())


def test_given_up_after_the_first_failure_until_resumed(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with operator(server.url), node(server.url, tmp_path, retry=False) as rig:
            await rig.up()
            server.kill()
            await until(lambda: rig.source.status.link is Link.LOST, "given up")
            assert "retry_on_disconnect" in rig.source.status.reason
            server.start()
            rig.source.resume()
            await rig.up()

    run(work())


def test_what_is_missing_is_told_in_words(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with node(server.url, tmp_path) as rig:
            await until(lambda: "see deploy/fleet" in rig.source.status.reason, lambda: rig.source.status.reason)
            assert rig.source.status.link is Link.DOWN
            assert rig.source.status.next_try_s is not None
        async with node("nats://127.0.0.1:9", tmp_path) as rig:
            await until(lambda: "cannot be reached" in rig.source.status.reason, lambda: rig.source.status.reason)
        async with operator(server.url) as fleet:
            await fleet.wire.api(f"STREAM.DELETE.{layout.RESULTS}")
            async with node(server.url, tmp_path) as rig:
                await fleet.submit()
                rig.source.settle(await rig.claim(), {}, None)
                await until(lambda: "set it up" in rig.source.status.reason, lambda: rig.source.status.reason)
                assert rig.source.status.outbox == 1

    run(work())


def test_a_result_that_is_too_large_for_the_fleet_is_a_failure_with_that_reason(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
            task = await fleet.submit()
            rig.source.settle(await rig.claim(), {"text": "x" * (9 << 20)}, None)
            assert "too large" in str((await fleet.settled(task)).error)

    run(work())


def test_the_outbox_is_bounded_by_asking_for_no_more(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.sources.linked.MAX_WAITING", 1)

    async def work() -> None:
        async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
            await fleet.submit()
            await fleet.submit()
            claim = await rig.claim()
            rig.source.settle(claim, {}, None)
            assert not rig.source.ask()
            await rig.delivered()
            assert rig.source.ask()

    run(work())


def test_a_node_tells_of_itself_and_is_gone_when_it_no_longer_does(server: NatsServer, tmp_path: Path) -> None:
    told = {"state": "COOLDOWN", "since": "2026-11-24T10:00:00+00:00", "blocked_by": ["user_away", "cooldown_over"]}

    async def work() -> None:
        async with operator(server.url) as fleet:
            async with node(server.url, tmp_path, node_id="a.b", describe=lambda: told, heartbeat_s=0.2) as rig:
                await rig.up()
                data = await fleet.wire.last(layout.NODES_STREAM, layout.node_subject("a.b"))
                entry = json.loads(data or b"")
                assert entry["node"] == "a.b"
                assert entry["state"] == "COOLDOWN"
                assert entry["since"] == told["since"]
                assert entry["reason"] == "in use by its person, rests after work"
                await fleet.submit()
                rig.source.settle(await rig.claim(), {}, None)
                await rig.delivered()
            data = await fleet.wire.last(layout.NODES_STREAM, layout.node_subject("a.b"))
            entry = json.loads(data or b"")
            assert entry["availability"] == "OFFLINE"
            assert entry["done"] == 1

    run(work())


def test_stopping_gives_back_what_was_not_taken(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with operator(server.url, lease_s=60) as fleet, node(server.url, tmp_path, node_id="two") as two:
            task = await fleet.submit()
            async with node(server.url, tmp_path, node_id="one") as one:
                await until(one.source.ask, "asked")
                await until(lambda: one.source.waiting is not None, "waiting")
            assert (await two.claim()).id == task
            await cut(two.source)

    run(work())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NEARLY_TASKS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.uuids().map(str) | st.uuids().map(lambda u: str(u).upper()) | JSON_VALUES,
        "type": st.text(max_size=200) | JSON_VALUES,
        "payload": st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3) | JSON_VALUES,
        "priority": st.integers() | JSON_VALUES,
    },
)


@given(st.binary(max_size=200) | (JSON_VALUES | NEARLY_TASKS).map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_a_sound_task_or_poison_and_nothing_else(data: bytes) -> None:
    fault = None
    try:
        claim = decode_task(data)
    except Poison as poison:
        fault = poison
    if fault is not None:
        assert str(fault)
        assert not fault.task_id or is_id(fault.task_id)
        return
    assert is_id(claim.id)
    assert 0 < len(claim.type) <= 128
    assert claim.type.isprintable()
    assert isinstance(claim.payload, dict)
    assert type(claim.priority) is int
    assert decode_task(encode_task(claim)).id == claim.id


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_token_is_one_token_and_tells_texts_apart(one: str, other: str) -> None:
    token = layout.token(one)
    assert re.fullmatch(r"[A-Za-z0-9_=-]*", token)
    assert (token == layout.token(other)) == (one == other)


def test_names_on_the_wire() -> None:
    assert layout.token("a.b c") == "a=2Eb=20c"
    assert layout.token("a=2Eb") != layout.token("a.b")
    assert layout.task_subject("llm inference", "id") == "rae.tasks.llm=20inference.id"
    with pytest.raises(Poison):
        decode_task(b'{"id": 1}')
    with pytest.raises(Poison):
        decode_result(b'{"id": 1}')


def test_a_task_that_nobody_runs_now_outlasts_an_evening() -> None:
    """One node that does not run it, beside one that does and is not free, must not use up what the fleet gives a task."""
    most = json.loads(DEFINITIONS.read_text())["consumers"][0]["max_deliver"]
    delays = [json.loads(unfit(count).removeprefix(b"-NAK "))["delay"] / 1e9 for count in range(1, most)]
    assert delays[0] == 2
    assert delays == sorted(delays)
    assert max(delays) == 300
    assert sum(delays) > 3 * 3600
    assert unfit(10**9) == unfit(most)


def test_a_consumer_that_is_deleted_under_a_waiting_poll_is_no_busy_loop(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        async with operator(server.url) as fleet, node(server.url, tmp_path, poll_s=600) as rig:
            await rig.up()
            assert rig.source.ask()
            client = rig.source._need()._client
            assert client is not None
            before = client.stats["out_msgs"]
            await until(lambda: client.stats["out_msgs"] > before + 1, "it waits for work")
            before = client.stats["out_msgs"]
            await fleet.wire.api(f"CONSUMER.DELETE.{layout.TASKS}.{layout.CONSUMER}")
            await until(lambda: rig.source.status.link is Link.DOWN, "down")
            assert client.stats["out_msgs"] < before + 20
            await until(lambda: "has no consumer nodes" in rig.source.status.reason, lambda: rig.source.status.reason)
        async with operator(server.url), node(server.url, tmp_path) as rig:
            await rig.up()

    run(work())


def test_whatever_lies_in_the_registry_the_overview_is_sound(server: NatsServer, tmp_path: Path) -> None:
    """Each node writes its own entry; what an operator's terminal shows of it are words."""
    odd: list[bytes] = [
        b"", b"\xff", b"[" * 100_000, b"[1]", b"{}", b'{"node": 7}',
        b'{"node": "seven", "done": "x", "reason": [1], "since": 1e999}',
        b'{"node": "red\\u001b[31m\\n", "state": {"a": 1}, "availability": null, "types": "x", "done": -1, "second": true}',
        b'{"node": "long", "reason": "' + b"x" * 100_000 + b'"}',
    ]

    async def work() -> None:
        async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
            await rig.up()
            for n, data in enumerate(odd):
                await fleet.wire.store(layout.node_subject(f"odd-{n}"), data, f"odd-{n}")
            seen = await overview(fleet.wire)
            assert [one["node"] for one in seen["nodes"]] == ["long", "node-1", "red[31m", "seven"]
            for line in screen(seen):
                assert line.isprintable()
                assert len(line) < 2000
            assert {type(one[name]) for one in seen["nodes"] for name in ("done", "failed", "handed_back", "second")} == {int}

    run(work())


def test_a_fleet_parted_by_kind_is_seen_whole(server: NatsServer, tmp_path: Path) -> None:
    """One consumer a kind, none of them by the usual name."""

    async def work() -> None:
        async with operator(server.url) as fleet:
            await fleet.wire.api(f"CONSUMER.DELETE.{layout.TASKS}.{layout.CONSUMER}")
            for kind in ("echo", "sleep"):
                settings = {"durable_name": kind, "ack_policy": "explicit", "filter_subject": f"rae.tasks.{kind}.*"}
                order = {"stream_name": layout.TASKS, "config": settings}
                await fleet.wire.api(f"CONSUMER.DURABLE.CREATE.{layout.TASKS}.{kind}", order)
            for kind in ("echo", "echo", "sleep"):
                await fleet.submit(kind)
            async with (
                node(server.url, tmp_path, node_id="one", nats=Nats("echo")) as one,
                node(server.url, tmp_path, node_id="two", nats=Nats("sleep")) as two,
            ):
                assert (await one.claim()).type == "echo"
                assert (await two.claim()).type == "sleep"
                assert (await overview(fleet.wire))["tasks"] == {"waiting": 1, "running": 2, "results": 0, "dead": 0}

    run(work())
