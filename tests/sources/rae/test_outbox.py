"""The outbox: an outcome is delivered, or its loss is said; a task is given back; a stop leaves none hanging."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from support import rae_server as s
from support.rae_rig import clock, in_made_time, running, taken_over
from support.rae_server import RaeServer, in_loop, until

from states.ending import failed, handed_back, succeeded
from states.observation import Link
from supervisor.config.schema import Token
from supervisor.sources import sanitize
from supervisor.sources.base import Claim
from supervisor.sources.errors import MIB
from supervisor.sources.in_flight import InFlightRecord, InFlightTask
from supervisor.sources.network_source import MAX_WAITING
from supervisor.sources.rae import outbox

SENTINEL = "sentinel-7f3a"

# --- outcomes


@pytest.mark.parametrize(
    ("result", "error", "status", "stored"),
    [
        ({"x": 1}, None, "COMPLETED", {"x": 1}),
        ({"returncode": 3}, "exit code 3", "FAILED", {"returncode": 3}),
        ({}, "", "FAILED", {}),
        ({"stdout": "a\0b\ud800", "v": [float("nan"), float("inf")], "raw": b"\xff\xfe"}, None, "COMPLETED",
         {"stdout": "a\ufffdb\ufffd", "v": [None, None], "raw": "\ufffd\ufffd"}),
        ({}, "nul \0 in\nthe \udcff error", "FAILED", {}),
    ],
    ids=["success", "failure", "an empty error is a failure", "what cannot be stored", "an error that cannot be stored"],
)  # fmt: skip
@in_loop
async def test_an_outcome_arrives_as_what_it_is(
    tmp_path: Path, result: dict[str, Any], error: str | None, status: str, stored: dict[str, Any]
) -> None:
    """Faults 4, 7 and 8: a NUL hung the task, failures counted as success, bytes lost everything."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add()
        rig.source.settle(await rig.claim(), succeeded(result) if error is None else failed(error, result))
        await rig.delivered()
        task = server.task(task_id)
        assert (task["status"], task["result"]) == (status, stored)
        assert bool(task["error"]) == (error is not None)
        assert len(server.of("result")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        s.closed, s.reset, s.half, s.silent, s.status(500), s.status(503), s.status(502), s.status(401), s.status(429),
        s.raw(s.http(200, b"<html>", kind="text/html")), s.raw(s.http(200, b"{}")), s.raw(s.http(302, b"", {"location": "/"})),
        s.status(404, {"detail": "Not Found"}), s.raw(b"HTTP/1.1 204 X\r\n\r\n"),
    ],
    ids=["closed", "reset", "half", "silent", "500", "503", "502", "401", "429", "html", "other", "redirect", "path", "204"],
)  # fmt: skip
@in_made_time
async def test_an_outcome_is_posted_until_it_is_confirmed(tmp_path: Path, fault: s.Fault) -> None:
    """Fault 4: one try, its status not looked at."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        server.faults["result"] += [fault, fault]
        rig.source.settle(claim, succeeded({"x": 1}))
        await rig.delivered()
        assert server.task(task_id)["status"] == "COMPLETED"
        assert rig.note == []
        await rig.up()


@pytest.mark.parametrize(("status", "posts"), [(404, 1), (400, 2), (422, 2)])
@in_loop
async def test_what_the_server_refuses_for_good_is_lost_and_in_the_journal(tmp_path: Path, status: int, posts: int) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.add()
        claim = await rig.claim()
        server.always["result"] = s.status(status, {"error": {}})
        rig.source.settle(claim, succeeded({"x": SENTINEL}))
        await rig.delivered()
        assert len(server.of("result")) == posts, "a bare failure is the last try"
        assert rig.names().count("outcome-lost") == 1
        assert rig.source.status.link is Link.UP
        assert rig.note == []
        assert SENTINEL not in repr(rig.events)


@in_loop
async def test_a_result_that_the_server_cannot_take_becomes_a_failure_that_says_so(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        server.faults["result"] += [s.status(500)] * outbox.REFUSALS
        rig.source.settle(claim, succeeded({"x": 1}))
        await rig.delivered()
        task = server.task(task_id)
        assert (task["status"], task["result"]) == ("FAILED", {})
        assert "refused the result 5 times with status 500" in task["error"]


@pytest.mark.parametrize("fault", [s.acted_then_closed, s.half, s.reset])
@pytest.mark.parametrize("refusal", [422, 413, 500])
@in_loop
async def test_a_result_whose_answer_was_lost_is_not_made_a_failure_by_a_later_refusal(
    tmp_path: Path, fault: s.Fault, refusal: int
) -> None:
    """The server has it: it is asked before the outcome would be replaced."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        server.faults["result"] += [fault, *[s.status(refusal, {"error": {}})] * outbox.REFUSALS]
        rig.source.settle(claim, succeeded({"x": 1}))
        await rig.delivered()
        assert (server.task(task_id)["status"], server.task(task_id)["result"]) == ("COMPLETED", {"x": 1})
        assert "delivered" in rig.names()
        assert "outcome-refused" not in rig.names()


@in_loop
async def test_a_server_that_is_broken_altogether_does_not_cost_a_result(tmp_path: Path) -> None:
    """500s count against the result only while the same server takes heartbeats."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        server.always = {kind: s.status(500) for kind in ("result", "heartbeat")}
        rig.source.settle(claim, succeeded({"x": 1}))
        await until(lambda: len(server.of("result")) > 2 * outbox.REFUSALS)
        server.always.clear()
        await rig.delivered()
        assert server.task(task_id)["result"] == {"x": 1}


@in_loop
async def test_a_result_too_large_is_a_failure_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BODY_BYTES", 100_000)
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        by_us, by_server = server.add(), server.add()
        rig.source.settle(await rig.claim(), succeeded({"x": "y" * 200_000}))
        await rig.delivered()
        claim = await rig.claim()
        server.faults["result"].append(s.status(413))
        rig.source.settle(claim, succeeded({"x": "y" * 50_000}))
        await rig.delivered()
        for task_id in (by_us, by_server):
            assert server.task(task_id)["status"] == "FAILED"
            assert "too large" in server.task(task_id)["error"]


@in_loop
async def test_outcomes_wait_for_the_server_in_their_order_and_one_task_has_one(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        ids = [server.add(), server.add()]
        claims = [await rig.claim(), await rig.claim()]
        assert [entry["id"] for entry in rig.note] == ids
        server.always = dict.fromkeys(("result", "heartbeat", "register"), s.closed)
        for claim in claims:
            rig.source.settle(claim, succeeded({}))
        rig.source.hand_back(claims[1], handed_back("user returned"), "resubmit")
        await until(lambda: len(server.of("result")) > 3)
        assert rig.source.status.outbox == 2
        assert rig.source.status.link is Link.DOWN
        server.always.clear()
        await rig.delivered()
        assert [event["task"] for event in rig.events if event["event"] == "delivered"] == ids
        assert {server.task(task_id)["status"] for task_id in ids} == {"COMPLETED"}
        assert server.of("create") == []


@in_loop
async def test_claims_that_cannot_be_run_are_failed_with_their_reason(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        for kind, payload in (("", {}), ("x" * 300, {}), ("t", [SENTINEL])):
            task_id = server.add(kind, payload)
            assert await rig.poll() is None
            await rig.delivered()
            assert server.task(task_id)["status"] == "FAILED"
            assert server.task(task_id)["error"].startswith("refused: ")
        assert SENTINEL not in repr(rig.events)


@in_loop
async def test_an_answer_that_gives_a_large_result_back_is_not_read_to_its_end(tmp_path: Path) -> None:
    """The server answers with the whole task: more than MAX_ANSWER_BYTES must not mean "not delivered"."""
    async with RaeServer().listening() as server, running(server, tmp_path, max_answer_bytes=MIB, total_timeout_s=10) as rig:
        await rig.up()
        done, back = server.add(), server.add("kind", {"p": "x" * 700_000})
        first, second = await rig.claim(), await rig.claim()
        rig.source.settle(first, succeeded({"x": "y" * 2_000_000}))
        rig.source.hand_back(second, handed_back("user returned"), "resubmit")
        await rig.delivered()
        assert len(server.task(done)["result"]["x"]) == 2_000_000
        assert "resubmitted as" in server.task(back)["error"]
        assert (len(server.of("result")), len(server.of("create"))) == (2, 1)
        assert rig.source.status.error == ""


@in_loop
async def test_a_task_too_large_to_be_read_is_failed_by_the_id_at_its_beginning(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path, max_answer_bytes=MIB) as rig:
        await rig.up()
        task_id = server.add("kind", {"p": SENTINEL + "x" * 2_000_000})
        assert await rig.poll() is None
        await rig.delivered()
        task = server.task(task_id)
        assert task["status"] == "FAILED"
        assert "1 MiB" in task["error"]
        assert "poll-lost" not in rig.names()
        assert rig.source.status.link is Link.UP
        assert SENTINEL not in repr(rig.events)


@in_loop
async def test_an_outcome_that_the_server_cannot_take_in_any_form_holds_up_no_other(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        first, second = server.add(), server.add()
        server.faults["result"] += [s.status(500)] * 2 * outbox.REFUSALS
        rig.source.settle(await rig.claim(), succeeded({"x": 1}))
        rig.source.settle(await rig.claim(), succeeded({"x": 2}))
        await rig.delivered()
        assert [event["task"] for event in rig.events if event["event"] == "outcome-lost"] == [first]
        assert server.task(second)["result"] == {"x": 2}


@pytest.mark.parametrize("times", [outbox.REFUSALS - 1, outbox.REFUSALS])
@in_loop
async def test_an_outcome_that_we_cannot_handle_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A fault of our own."""
    genuine, faults = outbox.Item.encode, []

    def encode(item: outbox.Item) -> bytes:
        if item.id == first and len(faults) < times:
            faults.append(item)
            raise RuntimeError(SENTINEL)
        return genuine(item)

    monkeypatch.setattr(outbox.Item, "encode", encode)
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        first, second = server.add(), server.add()
        rig.source.settle(await rig.claim(), succeeded({"x": 1}))
        rig.source.settle(await rig.claim(), succeeded({"x": 2}))
        await rig.delivered()
        assert server.task(second)["result"] == {"x": 2}
        lost = [event["task"] for event in rig.events if event["event"] == "outcome-lost"]
        assert lost == ([first] if times == outbox.REFUSALS else [])
        assert SENTINEL not in repr(rig.events)


@in_loop
async def test_outcomes_that_nobody_takes_do_not_pile_up(tmp_path: Path) -> None:
    """The link is sound and hands out tasks, but their results are put off for ever."""
    async with RaeServer(always={"result": s.status(429)}).listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        for _ in range(MAX_WAITING + 1):
            server.add()
        for _ in range(MAX_WAITING):
            rig.source.settle(await rig.claim(), succeeded({"x": 1}))
        assert rig.source.status.link is Link.UP
        assert not rig.source.ask()
        assert rig.source.status.outbox == MAX_WAITING
        server.always.clear()
        await rig.delivered()
        assert await rig.claim()


# --- giving back


@pytest.mark.parametrize("kind", ["\x1b[31mred", "a\nb", "\u202e", "x" * 201])
@in_loop
async def test_a_type_that_no_node_can_have_is_refused(tmp_path: Path, kind: str) -> None:
    """It would be shown on terminals, and written into lines."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add(kind)
        assert await rig.poll() is None
        await rig.delivered()
        assert server.task(task_id)["error"] == "refused: it has no usable type"
        assert kind not in repr(rig.events)


@in_loop
async def test_resubmit_posts_the_task_again_then_fails_the_old_one(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        old = server.add("kind", {"a": [1, "ü"]}, 7)
        rig.source.hand_back(await rig.claim(), handed_back("user active on\nseat0"), "resubmit")
        await rig.delivered()
        assert [name for name, _ in server.calls][-2:] == ["create", "result"]
        again = await rig.claim()
        assert (again.type, again.payload, again.priority) == ("kind", {"a": [1, "ü"]}, 7)
        assert server.task(old)["status"] == "FAILED"
        assert server.task(old)["error"] == f"preempted: user active on seat0; resubmitted as {again.id}"


@in_loop
async def test_large_outcomes_are_sanitized_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second for a payload of many megabytes, and the person is back just now."""
    genuine, where = sanitize.sanitize, []

    def slow(value: Any) -> Any:
        if "large" in {**(value.get("payload") or {}), **(value.get("result") or {})}:
            where.append(threading.current_thread())
        return genuine(value)

    monkeypatch.setattr(sanitize, "sanitize", slow)
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.add("kind", {"large": 1})
        rig.source.hand_back(await rig.claim(), handed_back("user returned"), "resubmit")
        await rig.delivered()
        rig.source.settle(await rig.claim(), succeeded({"large": 2}))
        await rig.delivered()
    assert len(where) == 2
    assert threading.main_thread() not in where


@in_loop
async def test_fail_has_the_stable_prefix_and_posts_nothing(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        old = server.add()
        rig.source.hand_back(await rig.claim(), handed_back("user returned"), "fail")
        await rig.delivered()
        assert server.task(old)["error"] == "preempted: user returned"
        assert server.of("create") == []


@pytest.mark.parametrize(
    ("fault", "posts", "doubt"),
    [
        pytest.param(s.acted_then_closed, 2, True, id="answer lost"),
        pytest.param(s.half, 2, True, id="answer broken off"),
        pytest.param(s.status(502), 2, True, id="gateway"),
        pytest.param(s.status(500), 2, False, id="server says no"),
        pytest.param(s.status(429), 2, False, id="slow down"),
    ],
)
@in_loop
async def test_a_repeated_repost_is_in_the_journal(tmp_path: Path, fault: s.Fault, posts: int, doubt: bool) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        old = server.add()
        claim = await rig.claim()
        server.faults["create"].append(fault)
        rig.source.hand_back(claim, handed_back("user returned"), "resubmit")
        await rig.delivered()
        assert len(server.of("create")) == posts
        assert ("repost-repeated" in rig.names()) == doubt
        assert "resubmitted as" in server.task(old)["error"]


@pytest.mark.parametrize(
    "fault",
    [s.status(422, {"error": {}}), s.status(404, {"detail": "Not Found"}), s.status(405, {"detail": "Method Not Allowed"})],
    ids=["not valid", "no such path", "no such method"],
)
@in_loop
async def test_a_task_that_cannot_be_posted_again_is_failed(tmp_path: Path, fault: s.Fault) -> None:
    """The very first release has no way to post a task."""
    async with RaeServer(always={"create": fault}).listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        old = server.add()
        rig.source.hand_back(await rig.claim(), handed_back("user returned"), "resubmit")
        await rig.delivered()
        assert server.task(old)["error"].startswith("preempted: user returned; could not be resubmitted")


@in_loop
async def test_a_task_that_the_server_cannot_take_again_holds_up_no_other(tmp_path: Path) -> None:
    """For example one whose priority it cannot store: 500 each time, while it takes everything else."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        first, second = server.add(), server.add()
        server.always["create"] = s.status(500)
        rig.source.hand_back(await rig.claim(), handed_back("user returned"), "resubmit")
        rig.source.settle(await rig.claim(), succeeded({"x": 1}))
        await rig.delivered()
        assert server.task(first)["error"] == "preempted: user returned; could not be resubmitted (status 500)"
        assert server.task(second)["result"] == {"x": 1}
        assert len(server.of("create")) == outbox.REFUSALS


@pytest.mark.parametrize("dialect", "ABCD")
@pytest.mark.parametrize("on_preempt", ["resubmit", "fail"])
@pytest.mark.parametrize("how", ["COMPLETED", "FAILED", "PENDING", "with another node"])
@in_loop
async def test_a_task_that_is_no_longer_ours_is_left_as_it_is(
    tmp_path: Path, dialect: str, on_preempt: str, how: str
) -> None:
    """Somebody has settled it, or queued it again. Only the oldest release cannot say so."""
    async with RaeServer(dialect).listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        old = server.add()
        claim = await rig.claim()
        task = server.node._tasks[UUID(old)]
        change = {"status": how} if how != "with another node" else {"assigned_node_id": uuid4()}
        for name, value in change.items():
            setattr(task, name, value)
        before = server.task(old)
        rig.source.hand_back(claim, handed_back("user returned"), on_preempt)
        await rig.delivered()
        if dialect == "A":
            assert server.task(old)["status"] == "FAILED"
            return
        assert server.of("create") == server.of("result") == []
        assert server.task(old) == before
        assert "note-removed" in rig.names()
        assert rig.note == []


@pytest.mark.parametrize("fault", [s.acted_then_closed, s.half, s.late(700)], ids=["lost", "half", "late"])
@pytest.mark.parametrize("crash", [False, True])
@in_made_time
async def test_no_task_is_posted_again_a_third_time(tmp_path: Path, fault: s.Fault, crash: bool) -> None:
    async with RaeServer(always={"create": fault}).listening() as server:
        async with running(server, tmp_path, patient_s=600, stop_s=None if crash else 2.0) as rig:
            await rig.up()
            old = server.add()
            rig.source.hand_back(await rig.claim(), handed_back("user returned"), "resubmit")
            await until(lambda: server.of("create"))
            await asyncio.sleep(0 if crash else 1500)
        async with running(server, tmp_path, patient_s=600) as rig:
            await asyncio.sleep(1500)
            assert rig.source.status.outbox == 0
        assert len(server.of("create")) == 2
        assert server.task(old)["status"] == "FAILED"
        assert server.task(old)["error"].startswith("preempted: ")
        assert "posted again 2 times" in server.task(old)["error"]


@pytest.mark.parametrize("late_s", [20, 200, 500])
@in_made_time
async def test_a_slow_server_gets_each_outcome_once(tmp_path: Path, late_s: int) -> None:
    slow = s.late(late_s)
    always = {"create": slow, "result": slow, "task": slow}
    async with RaeServer(always=always).listening() as server, running(server, tmp_path, patient_s=600) as rig:
        await rig.up()
        done, back = server.add(), server.add()
        rig.source.settle(await rig.claim(), succeeded({"x": 1}))
        rig.source.hand_back(await rig.claim(), handed_back("user returned"), "resubmit")
        await asyncio.sleep(5 * late_s)
        assert rig.source.status.outbox == 0
        assert (len(server.of("result")), len(server.of("create"))) == (2, 1)
        assert server.task(done)["status"] == "COMPLETED"
        assert "resubmitted as" in server.task(back)["error"]
        assert rig.source.status.error == ""


# --- stopping


@in_loop
async def test_an_orderly_stop_delivers_and_gives_back_what_was_not_taken(tmp_path: Path) -> None:
    """Fault 5: a stop left the task PROCESSING for ever."""
    async with RaeServer().listening() as server:
        done, waiting, flying = server.add(), server.add(), server.add()
        async with running(server, tmp_path, stop_s=5, on_preempt="fail") as rig:
            await rig.up()
            claim = await rig.claim()
            server.faults["result"].append(s.status(503))
            assert rig.source.ask()
            await until(lambda: rig.source.waiting)
            rig.source.settle(claim, succeeded({}))
        assert server.task(done)["status"] == "COMPLETED"
        assert server.task(waiting)["error"] == "preempted: the node stopped"
        assert server.of("heartbeat")[-1]["status"] == "OFFLINE"
        async with running(server, tmp_path, stop_s=5, on_preempt="fail") as rig:
            await rig.up()
            assert rig.source.ask(), "and the answer is on its way when the stop comes"
        assert server.task(flying)["error"] == "preempted: the node stopped"
        assert list(tmp_path.iterdir()) == []


@in_made_time
async def test_a_stop_keeps_its_deadline_and_reports_what_is_left(tmp_path: Path) -> None:
    async with RaeServer(always={"result": s.silent}).listening() as server:
        async with running(server, tmp_path, stop_s=0.3, read_timeout_s=30, total_timeout_s=30) as rig:
            await rig.up()
            task_id = server.add()
            rig.source.settle(await rig.claim(), succeeded({}))
            began_s = clock().now_s()
        assert clock().now_s() - began_s < 1
        assert [event["task"] for event in rig.events if event["event"] == "undelivered"] == [task_id]
        assert [entry["id"] for entry in rig.note] == [task_id]


@in_made_time
async def test_a_stop_without_a_server_does_not_wait_for_one(tmp_path: Path) -> None:
    await InFlightRecord(tmp_path).put(InFlightTask("7bc3cfb7-7654-4c30-a856-0f28b426b085", "t"))
    async with running("http://127.0.0.1:9", tmp_path, stop_s=10) as rig:
        await rig.down()
        began_s = clock().now_s()
    assert clock().now_s() - began_s < 1
    assert json.loads((tmp_path / "task.json").read_text())["tasks"]


@in_loop
async def test_a_journal_that_fails_ends_nothing(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()

        def fails(kind: str, fields: dict[str, Any]) -> None:
            raise OSError(28, "No space left on device")

        rig.source._on_event = fails
        server.add()
        server.faults["result"].append(s.closed)
        rig.source.settle(await rig.claim(), succeeded({}))
        await rig.delivered()
        await rig.up()
        rig.source.settle(Claim("7bc3cfb7-7654-4c30-a856-0f28b426b085", "t"), succeeded({}))
        await asyncio.wait_for(until(lambda: rig.source.status.outbox == 0), 10)


# --- other settings


@pytest.mark.parametrize(
    "changed", ["nothing", "url", "dialect", "ca_file", "token", "source", "capabilities"], ids=lambda name: f"other {name}"
)
@pytest.mark.parametrize("step", ["result", "create", "task"])
@in_loop
async def test_what_is_not_delivered_moves_over_to_a_link_with_other_settings(
    tmp_path: Path, changed: str, step: str
) -> None:
    """With the server away, in each state in which an outcome may be: not tried, in its post, its answer lost."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("right")
    other: dict[str, Any] = {
        "dialect": {"dialect": "B"}, "ca_file": {"ca_file": __file__}, "source": {"source": "embedded"},
        "token": {"token": Token(file=str(key))}, "capabilities": {"capabilities": {"gpu": False}},
    }.get(changed, {})  # fmt: skip
    state = tmp_path / "state"
    server = RaeServer()
    async with server.listening(), running(server, state) as rig:
        await rig.up()
        done, back = server.add(), server.add()
        claims = [await rig.claim(), await rig.claim()]
        server.always = {step: s.acted_then_closed if step == "result" else s.silent, "heartbeat": s.closed}
        outcomes = [(rig.source.settle, (claims[0], succeeded({"x": 1})))]
        outcomes.append((rig.source.hand_back, (claims[1], handed_back("user returned"), "resubmit")))
        for put, arguments in outcomes if step == "result" else outcomes[::-1]:
            put(*arguments)  # type: ignore[operator]
        await until(lambda: server.of(step))
        server.always = dict.fromkeys(("result", "create", "task", "heartbeat", "register"), s.closed)
        async with taken_over(rig, server.url + ("/" if changed == "url" else ""), **other) as new:
            assert new.source.status.outbox == 2
            assert rig.source.status.outbox == 0
            await new.down()
            if changed == "token":
                server.key = "right"
            server.always.clear()
            await new.delivered()
            assert "undelivered" not in rig.names()
            assert new.names().count("delivered") == 2
            assert "note-found" not in new.names()
        assert (server.task(done)["status"], server.task(done)["result"]) == ("COMPLETED", {"x": 1})
        assert "resubmitted as" in server.task(back)["error"]
        assert len(server.of("create")) <= 2
        assert new.note == []


@in_loop
async def test_what_is_delivered_is_not_delivered_again_by_the_link_that_takes_over(tmp_path: Path) -> None:
    """The change comes while the note of a delivered outcome is being removed, which a slow disk makes long."""
    async with RaeServer().listening() as server, running(server, tmp_path / "state") as rig:
        await rig.up()
        task = server.add()
        claim = await rig.claim()
        removing = asyncio.Event()

        async def slow(_task_id: str) -> None:
            removing.set()
            await asyncio.Event().wait()

        rig.source._outbox.forget = slow  # type: ignore[method-assign]
        rig.source.settle(claim, succeeded({"x": 1}))
        await removing.wait()
        async with taken_over(rig, server.url) as new:  # it finds the note, and looks at the task
            await new.up()
            await new.delivered()
        assert server.task(task)["status"] == "COMPLETED"
        assert len(server.of("result")) == 1
