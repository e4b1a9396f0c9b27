"""The walls of a fleet: what a user's key can do at a server and a gate as our own tools set them up, and what it cannot."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.nats_rig import KeyedFleet, gate_of, keyed_fleet, nats_server, needs_server, node, operator, until

from states.ending import succeeded
from supervisor.sources.desired import Order, Want
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin import ask
from supervisor.sources.nats.admin.gate import Gate
from supervisor.sources.nats.admin.order import NotSaid, place
from supervisor.sources.nats.connection import ACK, IN_PROGRESS, TERM, Connection, Server, nak
from supervisor.sources.nats.errors import Message, Refused

pytestmark = [needs_server, pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")]

ID = "11111111-1111-4111-8111-111111111111"
API = "$JS.API"
STREAMS = (subjects.TASKS, subjects.RESULTS, subjects.DEAD, subjects.PLACES, subjects.NODES_STREAM)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedFleet]:
    with keyed_fleet(tmp_path_factory.mktemp("fleet"), "desk-1", "desk-2") as one:
        yield one


class Attacker(Connection):
    """A user's connection that sends what it likes, and notes what the server refuses."""

    refusals: list[str]

    async def _record(self, error: Exception) -> None:
        self.refusals.append(str(error).lower())
        await super()._record(error)

    def _path(self, subject: str) -> str:
        return subject


async def attacker(fleet: KeyedFleet, user: str) -> Attacker:
    connection = Attacker(fleet.as_user(user), name=user)
    connection.refusals = []
    await connection.open()
    return connection


def gate(user: str, subject: str) -> str:
    return f"{subjects.GATE}.{user}.{subject}"


# What a key may not even send. `{me}`: the user's own name.
NOT_SENT: dict[str, str] = {
    "post a task": f"rae.tasks.echo.{ID}",
    "post a task through the gate": gate("{me}", f"rae.tasks.echo.{ID}"),
    "store a result past the gate": f"rae.results.{ID}",
    "store a saved state past the gate": f"rae.places.{ID}",
    "write a dead letter past the gate": f"rae.dead.{ID}",
    "write its own entry past the gate": subjects.node_subject("desk-1"),
    "write the entry of another node": gate("{me}", subjects.node_subject("desk-2")),
    "speak as another node": gate("desk-2", subjects.next_subject(subjects.TASKS, subjects.CONSUMER)),
    "speak as the operator": gate("operator", f"{API}.STREAM.INFO.{subjects.TASKS}"),
    "take work past the gate": subjects.next_subject(subjects.TASKS, subjects.CONSUMER),
    "take what is a bridge's": gate("{me}", subjects.next_subject(subjects.RESULTS, subjects.BRIDGE)),
    "acknowledge by a guessed address": f"$JS.ACK.{subjects.TASKS}.{subjects.CONSUMER}.1.1.1.1.0",
    "acknowledge for a bridge": f"$JS.ACK.{subjects.RESULTS}.bridge.1.1.1.1.0",
    "ask another node": subjects.ask_subject("desk-2", "why"),
    "ask another node through the gate": gate("{me}", subjects.ask_subject("desk-2", "log")),
    "ask itself": gate("{me}", subjects.ask_subject("desk-1", "why")),
    "answer for another node": gate("desk-2", "answer.0123456789abcdef0123456789abcdef"),
    "tell itself to lend more": gate("{me}", subjects.desired_subject("desk-1")),
    "tell another node": subjects.desired_subject("desk-2"),
    "read the order to another node": gate(
        "{me}", f"{API}.DIRECT.GET.{subjects.DESIRED_STREAM}.{subjects.desired_subject('desk-2')}"
    ),
    "read the queue": f"{API}.STREAM.MSG.GET.{subjects.TASKS}",
    "read results": gate("{me}", f"{API}.DIRECT.GET.{subjects.RESULTS}.rae.results.{ID}"),
    "read the registry": gate("{me}", f"{API}.DIRECT.GET.{subjects.NODES_STREAM}"),
    "purge the queue": f"{API}.STREAM.PURGE.{subjects.TASKS}",
    "purge the queue through the gate": gate("{me}", f"{API}.STREAM.PURGE.{subjects.TASKS}"),
    "delete a stream": f"{API}.STREAM.DELETE.{subjects.RESULTS}",
    "change a stream": f"{API}.STREAM.UPDATE.{subjects.RESULTS}",
    "delete a message": f"{API}.STREAM.MSG.DELETE.{subjects.TASKS}",
    "list the streams": f"{API}.STREAM.NAMES",
    "see a stream": gate("{me}", f"{API}.STREAM.INFO.{subjects.TASKS}"),
    "change a consumer": f"{API}.CONSUMER.DURABLE.CREATE.{subjects.TASKS}.nodes",
    "make a consumer": f"{API}.CONSUMER.CREATE.{subjects.RESULTS}",
    "delete a consumer": f"{API}.CONSUMER.DELETE.{subjects.TASKS}.nodes",
    "see the account": f"{API}.INFO",
    "move a leader": f"{API}.STREAM.LEADER.STEPDOWN.{subjects.TASKS}",
    "restore a backup": f"{API}.STREAM.RESTORE.{subjects.TASKS}",
    "speak as the system": "$SYS.REQ.SERVER.PING",
    "forge an advisory": f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{subjects.TASKS}.nodes",
    "answer for the gate": "_INBOX.desk-2.x",
    "anything else": "x.y",
}
HEARD = (
    "_INBOX.>", "_INBOX.desk-2.>", ">", "*", "rae.>", "rae.results.*", "rae.tasks.>", "rae.gate.>", "rae.ask.>",
    "rae.ask.desk-2.*", "rae.gate.desk-1.answer.*", "$KV.>", "$JS.>", "$SYS.>",
)  # fmt: skip


def test_a_nodes_key_sends_and_hears_nothing_but_its_own(fleet: KeyedFleet) -> None:
    async def work() -> None:
        node_1 = await attacker(fleet, "desk-1")
        async with operator("", server=fleet.as_user("gate"), made=True) as boss:
            before = {name: await boss.stream(name) for name in STREAMS}
            for what, form in NOT_SENT.items():
                subject = form.format(me="desk-1")
                await node_1.send(Message(subject, "", b"{}", {}))
                refusal = f'permissions violation for publish to "{subject}"'.lower()
                await until(lambda r=refusal: any(r in text for text in node_1.refusals), f"{what}: {node_1.refusals}")
            heard: list[Any] = []
            for subject in HEARD:
                await node_1.listen(subject, heard.append)
                refusal = f'permissions violation for subscription to "{subject}"'.lower()
                await until(lambda r=refusal: any(r in text for text in node_1.refusals), f"{subject}: {node_1.refusals}")
            assert {name: await boss.stream(name) for name in STREAMS} == before
            assert heard == []
        await node_1.close()

    asyncio.run(asyncio.wait_for(work(), 120))


ORDERS = {
    "purge the queue": f"{API}.STREAM.PURGE.{subjects.TASKS}",
    "delete the results": f"{API}.STREAM.DELETE.{subjects.RESULTS}",
    "make a consumer": f"{API}.CONSUMER.CREATE.{subjects.RESULTS}",
    "post a task": f"rae.tasks.echo.{ID}",
    "store a result": f"rae.results.{ID}",
    "acknowledge": f"$JS.ACK.{subjects.TASKS}.{subjects.CONSUMER}.1.1.1.1.0",
    "speak as the operator": gate("operator", f"rae.tasks.echo.{ID}"),
    "fill another's inbox": "_INBOX.desk-2.x",
    "fill an inbox of a like name": "_INBOX.desk-11.x",
    "call itself": gate("desk-1", subjects.node_subject("desk-1")),
}
ASKED = {
    "desk-1": (subjects.node_subject("desk-1"), f"{API}.CONSUMER.INFO.{subjects.TASKS}.{subjects.CONSUMER}"),
    "operator": (f"{API}.STREAM.INFO.{subjects.TASKS}", f"{API}.DIRECT.GET.{subjects.RESULTS}.rae.results.{ID}"),
    "bridge": (f"{API}.CONSUMER.INFO.{subjects.RESULTS}.{subjects.BRIDGE}", subjects.next_subject(subjects.RESULTS, "bridge")),
}


@pytest.mark.parametrize("user", ASKED)
def test_the_place_of_an_answer_is_no_order(fleet: KeyedFleet, user: str) -> None:
    """Each request is allowed; its answer would be an order of the server's own."""

    async def work() -> None:
        one = await attacker(fleet, user)
        async with operator("", server=fleet.as_user("gate"), made=True) as boss:
            heard: list[Message] = []
            await boss.connection.listen("_INBOX.desk-2.>", heard.append)
            before = {name: await boss.stream(name) for name in (subjects.TASKS, subjects.RESULTS, subjects.DEAD)}
            for subject in ASKED[user]:
                for order in ORDERS.values():
                    await one.send(Message(gate(user, subject), order, b'{"batch": 1, "no_wait": true}', {}))
            # the gate hears one user's requests in their order: an honest one after them is answered last
            await Connection.request(one, gate(user, ASKED[user][0]), b"{}")
            assert {name: await boss.stream(name) for name in before} == before
            assert heard == []
        await one.close()

    asyncio.run(asyncio.wait_for(work(), 120))


@pytest.mark.parametrize("user", ["operator", "bridge"])
@pytest.mark.parametrize(
    "subject",
    [f"{API}.STREAM.PURGE.{subjects.TASKS}", f"{API}.STREAM.DELETE.{subjects.RESULTS}",
     f"{API}.CONSUMER.CREATE.{subjects.TASKS}", f"rae.results.{ID}", f"rae.places.{ID}", subjects.node_subject("desk-1"),
     subjects.next_subject(subjects.TASKS, "nodes")],
)  # fmt: skip
def test_operators_and_bridges_have_their_own_rights_alone(fleet: KeyedFleet, user: str, subject: str) -> None:
    async def work() -> None:
        one = await attacker(fleet, user)
        for path in (subject, gate(user, subject), gate("gate", subject)):
            await one.send(Message(path, "", b"{}", {}))
            refusal = f'permissions violation for publish to "{path}"'.lower()
            await until(lambda r=refusal: any(r in text for text in one.refusals), f"{path}: {one.refusals}")
        await one.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_only_the_task_that_a_node_holds_is_its_own(fleet: KeyedFleet) -> None:
    """Two nodes with a task each: no lease serves the other, none can be made up, and none loses a task."""

    async def work() -> None:
        ones = {name: Connection(fleet.as_user(name), name=name) for name in ("desk-1", "desk-2")}
        async with operator("", server=fleet.as_user("operator"), made=True) as boss:
            tasks = [await boss.submit(), await boss.submit()]
            leases = {}
            for name, connection in ones.items():
                await connection.open()
                delivery = await connection.pull(subjects.TASKS, subjects.CONSUMER, linger_s=lambda: 5.0)
                assert delivery is not None
                leases[name] = delivery.reply, json.loads(delivery.data)["id"]
            (mine, my_task), (other, other_task) = leases["desk-1"], leases["desk-2"]
            assert {my_task, other_task} == set(tasks)
            node_1 = ones["desk-1"]

            async def refused(work: Any, why: str) -> None:
                with pytest.raises(Refused, match=why):
                    await work

            path, text, signature = mine.rsplit(".", 2)
            stolen = f"{gate('desk-1', 'lease')}.{other.split('.lease.')[1]}"
            for what in (ACK, TERM, IN_PROGRESS, nak()):
                await refused(node_1.acknowledge(stolen, what), "another node's")
                await refused(node_1.acknowledge(f"{path}.{text}.{signature[::-1]}", what), "none of this fleet's")
                await refused(node_1.acknowledge(f"{path}.e30.{signature}", what), "none of this fleet's")
            await refused(node_1.acknowledge(mine, b"+NXT 100"), "no acknowledgement")
            for what in (ACK, TERM):
                await refused(node_1.acknowledge(mine, what), "neither a result nor a dead letter")
            for kind in ("results", "places", "dead"):
                await refused(node_1.store(f"rae.{kind}.{other_task}", b"{}", str(uuid4()), lease=mine), "another task's")
                await refused(node_1.store(f"rae.{kind}.{other_task}", b"{}", str(uuid4()), lease=stolen), "another node's")
                await refused(node_1.store(f"rae.{kind}.{other_task}", b"{}", str(uuid4())), "no lease|none of this")
            await refused(node_1.last(subjects.PLACES, subjects.place_subject(other_task), lease=mine), "another task's")
            # headers that change what JetStream does are dropped: the entries of others stay
            await ones["desk-2"].request(subjects.node_subject("desk-2"), b"{}")
            await node_1.request(subjects.node_subject("desk-1"), b"{}", headers={"Nats-Rollup": "all"})
            entries = await boss.connection.last_of_each(subjects.NODES_STREAM)
            assert len(entries) >= 2
            # what is asked for beyond one message is not given
            assert await boss.result(other_task) is None
            # and its own works
            renewed = await node_1.acknowledge(mine, IN_PROGRESS)
            assert renewed != mine
            body = json.dumps({"id": my_task, "type": "echo", "node": "desk-1", "result": {}, "error": None}).encode()
            await node_1.store(subjects.result_subject(my_task), body, "x", lease=renewed)
            await node_1.acknowledge(renewed, ACK)
            await ones["desk-2"].acknowledge(other, nak())
            again = await node_1.pull(subjects.TASKS, subjects.CONSUMER, linger_s=lambda: 5.0)
            assert again is not None
            assert json.loads(again.data)["id"] == other_task
            await node_1.store(subjects.result_subject(other_task), body, "y", lease=again.reply)
            await node_1.acknowledge(again.reply, ACK)
        for connection in ones.values():
            await connection.close()

    asyncio.run(asyncio.wait_for(work(), 120))


def test_a_lease_that_has_ended_gives_nothing_back(fleet: KeyedFleet) -> None:
    """Its task may be another node's by then. A result of it is still stored: the first one counts."""

    async def work() -> None:
        now = [1000.0]
        connection = Connection(fleet.as_user("gate"), name="gate")
        one_gate = Gate(connection, "secret", lambda: now[0])
        ack = f"$JS.ACK.{subjects.TASKS}.{subjects.CONSUMER}.1.7.1.1.0"
        address = one_gate._lease("desk-1", Message(f"rae.tasks.echo.{ID}", ack, b"", {}), 10.0)
        assert one_gate._held("desk-1", address).names == [ID, "sequence-7"]
        now[0] += 11
        await one_gate._give_back("desk-1", address)  # else it would fail: there is no connection
        for what in (nak(), IN_PROGRESS, TERM):
            with pytest.raises(Exception, match="the lease has ended"):
                await one_gate._acknowledge("desk-1", Message(address, "_INBOX.desk-1.x", what, {}))

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_node_works_through_two_gates_and_when_one_ends(fleet: KeyedFleet, tmp_path: Path) -> None:
    async def work() -> None:
        key = fleet.as_user("desk-2").password
        async with (
            operator("", server=fleet.as_user("operator"), made=True) as boss,
            node(fleet.url, tmp_path, node_id="desk-2", token=key, ca_file=str(fleet.keys / "ca.pem")) as rig,
        ):
            await rig.up()
            first, second = await boss.submit(), await boss.submit()
            claim = await rig.claim()
            rig.source.settle(claim, succeeded({"n": 1}))
            await rig.delivered()
            begun.set()
            await asyncio.get_running_loop().run_in_executor(None, ended.wait)
            rig.source.settle(await rig.claim(), succeeded({"n": 2}))
            assert {(await boss.settled(task)).node for task in (first, second)} == {"desk-2"}

    begun, ended = threading.Event(), threading.Event()
    with gate_of(fleet.url, fleet.keys):
        thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(work(), 90)))
        thread.start()
        assert begun.wait(60)
    ended.set()
    thread.join(90)
    assert not thread.is_alive()


def test_the_operators_order_reaches_its_node_and_no_other(fleet: KeyedFleet, tmp_path: Path) -> None:
    """At once where the node is there, at its next connection where it was not."""

    async def work() -> None:
        keys = {name: fleet.as_user(name).password for name in ("desk-1", "desk-2")}
        ca = str(fleet.keys / "ca.pem")
        boss = Connection(fleet.as_user("operator"), name="operator")
        await boss.open()
        async with node(fleet.url, tmp_path, node_id="desk-1", token=keys["desk-1"], ca_file=ca) as one:
            await one.up()
            assert await place(boss, "desk-1", Order(Want.PAUSE, 1.0, "ops@far", after_task=True))
            await until(lambda: one.recorded.orders, "the order")
            assert one.recorded.orders == [Order(Want.PAUSE, 1.0, "ops@far", None, True)]
            with pytest.raises(NotSaid, match=r"no node desk-9 is there now; there are: .*desk-1"):
                await place(boss, "desk-9", Order(Want.OFF, 1.0, "ops@far"))
            with pytest.raises(NotSaid, match="nothing to take back"):
                await place(boss, "desk-1", Order(Want.RUN, 1.0, "ops@far"), takes_back=Want.OFF)
            assert await place(boss, "desk-1", Order(Want.RUN, 1.0, "ops@far"), takes_back=Want.PAUSE)
            await until(lambda: len(one.recorded.orders) == 2, "the other order")
            assert one.recorded.orders[1].at > 1.0, "an order is newer than the one before, whatever the clock says"
            await boss.request(subjects.desired_subject("desk-1"), b'{"want": "lend more"}')
            assert "cannot be read" in (await one.saw("order-refused"))["reason"]
            assert len(one.recorded.orders) == 2
        await place(boss, "desk-2", Order(Want.OFF, 5.0, "ops@far"), away=True)
        async with node(fleet.url, tmp_path, node_id="desk-2", token=keys["desk-2"], ca_file=ca) as two:
            await two.up()
            assert [order.want for order in two.recorded.orders] == [Want.OFF]
        await boss.close()

    asyncio.run(asyncio.wait_for(work(), 90))


def test_a_task_for_a_node_that_waits_no_more_goes_to_the_next_one_at_once(fleet: KeyedFleet) -> None:
    """Its poll still stands at the server when its person comes back."""

    async def work() -> None:
        gone, there = (Connection(fleet.as_user(name), name=name) for name in ("desk-1", "desk-2"))
        await gone.open()
        await there.open()
        async with operator("", server=fleet.as_user("operator"), made=True) as boss:
            stop = asyncio.Event()
            poll = asyncio.create_task(gone.pull(subjects.TASKS, subjects.CONSUMER, linger_s=lambda: 60.0, stop=stop))
            async with operator("", server=fleet.as_user("gate"), made=True) as everything:
                await everything.asked_for(1)
            stop.set()
            assert await poll is None
            task = await boss.submit()
            began_s = time.monotonic()
            delivery = await there.pull(subjects.TASKS, subjects.CONSUMER, linger_s=lambda: 60.0)
            assert delivery is not None
            assert time.monotonic() - began_s < 5, "not only at the end of a lease of 10 s"
            body = json.dumps({"id": task, "type": "echo", "node": "desk-2", "result": {}, "error": None}).encode()
            await there.store(subjects.result_subject(task), body, "z", lease=delivery.reply)
            await there.acknowledge(delivery.reply, ACK)
        await gone.close()
        await there.close()

    asyncio.run(asyncio.wait_for(work(), 90))


def test_a_full_stream_of_results_loses_no_task_and_the_node_says_so(fleet: KeyedFleet, tmp_path: Path) -> None:
    """The result waits at its node, its lease is renewed meanwhile, and it is delivered when there is room."""

    async def work() -> None:
        key = fleet.as_user("desk-1").password
        async with (
            operator("", server=fleet.as_user("gate"), made=True) as boss,
            node(fleet.url, tmp_path, node_id="desk-1", token=key, ca_file=str(fleet.keys / "ca.pem")) as rig,
        ):
            settings = (await boss.ask(f"STREAM.INFO.{subjects.RESULTS}"))["config"]
            await rig.up()
            task = await boss.submit()
            claim = await rig.claim()
            await boss.connection.api(f"STREAM.UPDATE.{subjects.RESULTS}", {**settings, "max_bytes": 1})
            rig.source.settle(claim, succeeded({"n": 1}))
            await until(lambda: "maximum bytes exceeded" in rig.source.status.reason, lambda: rig.source.status.reason)
            assert rig.source.status.outbox == 1
            await boss.connection.api(f"STREAM.UPDATE.{subjects.RESULTS}", settings)
            await rig.delivered()
            assert (await boss.settled(task)).result == {"n": 1}

    asyncio.run(asyncio.wait_for(work(), 90))


def test_a_fleet_without_a_gate_is_named(fleet: KeyedFleet, tmp_path: Path) -> None:
    """The server is there and takes the key, and nobody answers."""

    async def work() -> None:
        with nats_server(tmp_path / "bare") as bare:
            connection = Connection(Server(bare.url, "desk-1", "no server asks for it"), name="desk-1")
            await connection.open()
            with pytest.raises(RequestError, match=r"no gate \(deploy/fleet/gate\) answers there"):
                await connection.api(f"CONSUMER.INFO.{subjects.TASKS}.{subjects.CONSUMER}")
            await connection.close()

    asyncio.run(asyncio.wait_for(work(), 60))


# What a node may answer: only what it was asked, in time, and short enough reaches the operator.
ANSWERS: dict[str, tuple[bytes, str]] = {
    "a good one": (b'{"lines": [{"time": "2026-01-01T00:00:00+00:00", "text": "a"}]}', ""),
    "no JSON": (b"\xff", "is no answer"),
    "too long": (b" " * (1 << 20) + b"{}", "too long"),
    "an error": (b'{"error": {"code": 400, "description": "no\\nlog"}}', "no log"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_node_answers_what_it_is_asked_and_nothing_else(fleet: KeyedFleet, kind: str) -> None:
    async def work() -> None:
        node_1, asked = await attacker(fleet, "desk-1"), asyncio.Queue[Message]()
        entry = b'{"node": "desk-1", "state": "READY"}'
        await Connection.request(node_1, gate("desk-1", subjects.node_subject("desk-1")), entry)
        await node_1.listen(subjects.ask_subject("desk-1", "*"), asked.put_nowait)
        async with operator("", server=fleet.as_user("operator"), made=True) as boss:
            answer = asyncio.create_task(ask.log(boss.connection, "desk-1", 5))
            question = await asked.get()
            assert (question.subject, question.data) == ("rae.ask.desk-1.log", b'{"lines": 5}')
            place = gate("desk-1", "answer.")
            assert question.reply.startswith(place)
            await node_1.send(Message(place + "0" * 32, f"{API}.STREAM.PURGE.{subjects.TASKS}", b'{"lines": []}', {}))
            await node_1.send(Message(question.reply, "_INBOX.desk-2.x", ANSWERS[kind][0], {}))
            await node_1.send(Message(question.reply, "", b'{"lines": []}', {}))  # a second one comes too late
            if why := ANSWERS[kind][1]:
                with pytest.raises(RequestError, match=why):
                    await answer
            else:
                assert await answer == [{"time": "2026-01-01T00:00:00+00:00", "text": "a"}]
        await node_1.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_node_that_does_not_listen_is_no_riddle(fleet: KeyedFleet) -> None:
    async def work() -> None:
        node_1 = await attacker(fleet, "desk-1")
        entry = b'{"node": "desk-1", "state": "READY"}'
        await Connection.request(node_1, gate("desk-1", subjects.node_subject("desk-1")), entry)
        await node_1.close()
        async with operator("", server=fleet.as_user("operator"), made=True) as boss:
            with pytest.raises(RequestError, match="desk-1: why: the node gives no answer"):
                await ask.why(boss.connection, "desk-1")
            with pytest.raises(NotSaid, match="no node desk-9 is there now"):
                await ask.why(boss.connection, "desk-9")

    asyncio.run(asyncio.wait_for(work(), 60))
