"""The note of the tasks in hand: what a crash leaves is settled, and what cannot be noted is not begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import rae_server as s
from support.rae_rig import NODE_ID, running
from support.rae_server import RaeServer, in_loop, until

from states.ending import handed_back, succeeded
from supervisor.sources.errors import MIB
from supervisor.sources.in_flight import UNKNOWN, InFlightRecord

SENTINEL = "sentinel-7f3a"
FULL = "No space left on device"


@in_loop
async def test_the_note_is_there_before_the_claim_and_holds_no_payload(tmp_path: Path) -> None:
    """Fault 5, and R6."""
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add("kind", {"secret": SENTINEL})
        await until(rig.source.ask)
        await until(lambda: rig.source.waiting)
        node = server.node.register(NODE_ID, {}, None)["id"]
        assert rig.note == [{"id": task_id, "type": "kind", "node": node}]
        claim = rig.source.take()
        assert claim is not None
        assert SENTINEL not in repr(claim)
        assert all(SENTINEL.encode() not in path.read_bytes() for path in tmp_path.rglob("*"))
        rig.source.settle(claim, succeeded({"secret": SENTINEL}))
        await rig.delivered()
        assert list(tmp_path.iterdir()) == []
        assert SENTINEL not in repr(rig.events)


async def crashed(server: RaeServer, state_dir: Path, **task: Any) -> str:
    """A node that has claimed a task and then lost its power; the task's id."""
    task_id = server.add(**task)
    async with running(server, state_dir, stop_s=None) as rig:
        await rig.up()
        assert (await rig.claim()).id == task_id
    return task_id


@pytest.mark.parametrize("dialect", "BCD")
@pytest.mark.parametrize("on_preempt", ["resubmit", "fail"])
@in_loop
async def test_after_a_crash_the_task_is_settled_before_another_is_asked_for(
    tmp_path: Path, dialect: str, on_preempt: str
) -> None:
    async with RaeServer(dialect).listening() as server:
        task_id = await crashed(server, tmp_path, kind="kind", payload={"a": 1}, priority=4)
        async with running(server, tmp_path, on_preempt=on_preempt) as rig:
            assert rig.source._outbox.recovering
            assert not rig.source.ask()
            await rig.up()
            await rig.delivered()
            assert not rig.source._outbox.recovering
            task = server.task(task_id)
            assert task["status"] == "FAILED"
            assert task["error"].startswith("preempted: node restarted")
            assert rig.note == []
            again = await rig.poll()
            if on_preempt == "fail":
                assert again is None
            else:
                assert again is not None
                assert (again.type, again.payload, again.priority) == ("kind", {"a": 1}, 4)
                assert task["error"].endswith(f"; resubmitted as {again.id}")


@in_loop
async def test_dialect_a_cannot_look_a_task_up_so_it_fails(tmp_path: Path) -> None:
    async with RaeServer("A").listening() as server:
        task_id = await crashed(server, tmp_path)
        async with running(server, tmp_path) as rig:
            await rig.delivered()
            assert server.task(task_id)["error"] == "preempted: node restarted while it had the task"
            assert server.of("create") == []


@pytest.mark.parametrize("how", ["completed", "queued again", "with another node", "unknown"])
@in_loop
async def test_a_task_that_is_no_longer_ours_is_left_alone(tmp_path: Path, how: str) -> None:
    async with RaeServer().listening() as server:
        task_id = await crashed(server, tmp_path)
        task = next(iter(server.node._tasks.values()))
        if how == "completed":
            task.status = "COMPLETED"
        elif how == "queued again":
            task.status, task.assigned_node_id = "PENDING", None
        elif how == "with another node":
            task.assigned_node_id = type(task.id)(int=5)
        else:
            server.node._tasks.clear()
        async with running(server, tmp_path) as rig:
            await rig.up()
            await rig.delivered()
            assert rig.note == []
            assert "note-removed" in rig.names()
            assert server.of("result") == server.of("create") == []
            if how == "queued again":
                assert (await rig.claim()).id == task_id


@in_loop
async def test_a_node_that_changed_its_name_still_knows_its_task(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        task_id = await crashed(server, tmp_path)
        async with running(server, tmp_path, node_id="renamed") as rig:
            await rig.delivered()
        assert server.task(task_id)["status"] == "FAILED"


@pytest.mark.parametrize("known", [True, False])
@in_loop
async def test_a_crash_after_the_repost_does_not_post_a_third(tmp_path: Path, known: bool) -> None:
    """With the id in the note the old task is failed with it; without, the second post is made, and said."""
    async with RaeServer().listening() as server:
        task_id = await crashed(server, tmp_path)
        new = server.add()
        notes = InFlightRecord(tmp_path)
        await notes.load()
        await notes.repost(task_id, new if known else UNKNOWN)
        async with running(server, tmp_path) as rig:
            await rig.delivered()
            assert len(server.of("create")) == (0 if known else 1)
            assert ("repost-repeated" in rig.names()) != known
            assert server.task(task_id)["error"].endswith(f"; resubmitted as {new}") == known


@in_loop
async def test_a_power_cut_between_repost_and_failure_is_such_a_crash(tmp_path: Path) -> None:
    async with RaeServer(always={"result": s.closed}).listening() as server:
        old = server.add()
        async with running(server, tmp_path, stop_s=None) as rig:
            await rig.up()
            rig.source.hand_back(await rig.claim(), handed_back("user returned"), "resubmit")
            await until(lambda: server.of("result"))
        server.always.clear()
        async with running(server, tmp_path) as rig:
            await rig.delivered()
            assert len(server.of("create")) == 1
            assert "resubmitted as" in server.task(old)["error"]


@in_loop
async def test_settling_a_crash_survives_errors(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        task_id = await crashed(server, tmp_path)
        for kind in ("task", "create", "result", "register"):
            server.faults[kind] += [s.status(503), s.closed]
        async with running(server, tmp_path) as rig:
            await rig.delivered()
        assert server.task(task_id)["status"] == "FAILED"


@in_loop
async def test_a_left_task_that_is_too_large_to_be_looked_at_holds_up_no_other(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        task_id = await crashed(server, tmp_path, payload={"p": SENTINEL + "x" * 2_000_000})
        async with running(server, tmp_path, max_answer_bytes=MIB) as rig:
            await rig.delivered()
            assert server.task(task_id)["error"] == "preempted: node restarted while it had the task"
            await rig.up()
            other = server.add()
            assert (await rig.claim()).id == other
            assert SENTINEL not in repr(rig.events)


@in_loop
async def test_a_left_task_that_is_over_and_too_large_to_be_looked_at_stays_as_it_is(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        task_id = await crashed(server, tmp_path, payload={"p": "x" * 2_000_000})
        next(iter(server.node._tasks.values())).status = "COMPLETED"
        async with running(server, tmp_path, max_answer_bytes=MIB) as rig:
            await rig.delivered()
            assert server.of("result") == []
            assert server.task(task_id)["status"] == "COMPLETED"
            assert rig.note == []


@pytest.mark.parametrize("status", [400, 410, 422, 500])
@in_loop
async def test_a_left_task_that_the_server_cannot_show_is_failed(tmp_path: Path, status: int) -> None:
    """Or the node would ask for nothing any more."""
    async with RaeServer(always={"task": s.status(status)}).listening() as server:
        task_id = await crashed(server, tmp_path)
        async with running(server, tmp_path) as rig:
            await rig.delivered()
            assert server.task(task_id)["error"] == "preempted: node restarted while it had the task"
            assert not rig.source._outbox.recovering


@pytest.mark.parametrize(
    "odd",
    [
        {"assigned_node_id": ["x"]}, {"assigned_node_id": {}}, {"assigned_node_id": 7}, {"status": ["PROCESSING"]},
        {"status": {}}, {"payload": 7}, {"type": {}}, {"type": ""}, {"priority": {}}, {"priority": 1e308},
        {"payload": None, "type": None},
    ],
    ids=str,
)  # fmt: skip
@in_loop
async def test_a_left_task_that_is_shown_oddly_holds_up_no_other(tmp_path: Path, odd: dict[str, Any]) -> None:
    async with RaeServer().listening() as server:
        task_id = await crashed(server, tmp_path)

        async def shown(x: s.Exchange) -> None:
            task = {**json.loads(x.genuine().partition(b"\r\n\r\n")[2]), **odd}
            await s.raw(s.http(200, json.dumps(task).encode()))(x)

        server.always["task"] = shown
        async with running(server, tmp_path) as rig:
            await rig.delivered()
            assert not rig.source._outbox.recovering
            assert rig.note == []
            assert rig.source.status.error == ""
            left_alone = "status" in odd or "assigned_node_id" in odd
            assert server.task(task_id)["status"] == ("PROCESSING" if left_alone else "FAILED")


@in_loop
async def test_a_damaged_note_is_an_event_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"version": 1, "tasks": [')
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        assert rig.names()[0] == "note-unreadable"
        assert await rig.poll() is None


@in_loop
async def test_a_claim_that_cannot_be_recorded_goes_back_and_no_other_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: a task that a power cut would lose is not begun."""
    full = True

    def replace(self: InFlightRecord, path: Path, content: bytes) -> None:
        if full:
            raise OSError(28, FULL, str(path))
        genuine(self, path, content)

    genuine = InFlightRecord._replace
    monkeypatch.setattr(InFlightRecord, "_replace", replace)
    async with RaeServer().listening() as server, running(server, tmp_path, on_preempt="fail") as rig:
        await rig.up()
        first, second = server.add(), server.add()
        assert await rig.poll() is None
        await rig.delivered()
        assert FULL in server.task(first)["error"]
        assert await rig.poll() is None
        assert server.task(second)["status"] == "PENDING"
        full = False
        assert (await rig.claim()).id == second


@in_loop
async def test_a_claim_that_is_not_sound_is_not_posted_again_even_if_it_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a part of it is known: posted again, it would be another task."""
    async with RaeServer().listening() as server, running(server, tmp_path, max_answer_bytes=MIB) as rig:
        await rig.up()
        task_id = server.add("kind", {"p": "x" * 2_000_000})

        def full(self: InFlightRecord, path: Path, content: bytes) -> None:
            raise OSError(28, FULL, str(path))

        monkeypatch.setattr(InFlightRecord, "_replace", full)
        assert await rig.poll() is None
        await rig.delivered()
        assert server.of("create") == []
        assert "larger than this node reads" in server.task(task_id)["error"]


@in_loop
async def test_a_task_queued_again_behind_our_back_is_not_run_twice(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        task = next(iter(server.node._tasks.values()))
        task.status, task.assigned_node_id = "PENDING", None
        assert await rig.poll() is None
        assert "claim-ignored" in rig.names()
        rig.source.settle(claim, succeeded({}))
        await rig.delivered()
        assert server.task(task_id)["status"] == "COMPLETED"
