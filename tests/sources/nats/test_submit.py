"""Submitting to a fleet and waiting for results, at a real nats-server, with more tasks than are looked up at once."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from support.nats_rig import NatsServer, Operator, needs_server, operator, server, until
from support.rae_server import in_loop

from supervisor.sources.base import Claim
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin import submit
from supervisor.sources.nats.errors import Refused
from supervisor.sources.nats.messages import Result

__all__ = ["server"]  # a fixture
pytestmark = needs_server


async def done(fleet: Operator, task_id: str) -> None:
    """A node's result of the task is stored."""
    await fleet.connection.store(subjects.result_subject(task_id), Result(task_id, "t", "n", {}, None).encode(), task_id)


@in_loop
async def test_results_are_found_behind_many_that_do_not_come(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that were there before anybody listened, as when the same file is submitted again."""
    monkeypatch.setattr(submit, "AT_ONCE", 4)
    monkeypatch.setattr(submit, "LOOK_AGAIN_S", 0.01)
    async with operator(server.url) as fleet:
        there, never = [str(uuid4()) for _ in range(10)], [str(uuid4()) for _ in range(30)]
        for task_id in there:
            await done(fleet, task_id)
        came: list[Result] = []
        waiting = asyncio.create_task(submit.wait(fleet.connection, [*never, *there], timeout_s=None, on_result=came.append))
        await until(lambda: len(came) == len(there), lambda: f"all that are there, not {len(came)}")
        late = never.pop()
        await done(fleet, late)
        await until(lambda: len(came) > len(there), "one that comes late")
        assert sorted(result.id for result in came) == sorted([*there, late])
        waiting.cancel()


@in_loop
async def test_what_is_stored_in_place_of_a_result_ends_the_wait(server: NatsServer) -> None:
    async with operator(server.url) as fleet:
        odd, other = str(uuid4()), str(uuid4())
        await fleet.connection.store(subjects.result_subject(odd), b"<html>", odd)
        await fleet.connection.store(subjects.result_subject(other), Result(odd, "t", "n", {}, None).encode(), other)
        came: list[Result] = []
        assert await submit.wait(fleet.connection, [odd, other], timeout_s=60, on_result=came.append) == set()
        assert {result.id for result in came} == {odd, other}
        assert all("is no result" in str(result.error) for result in came)


@in_loop
async def test_a_result_may_name_its_task_in_capitals(server: NatsServer) -> None:
    async with operator(server.url) as fleet:
        task_id = str(uuid4())
        data = Result(task_id.upper(), "t", "n", {}, None).encode()
        await fleet.connection.store(subjects.result_subject(task_id), data, task_id)
        came: list[Result] = []
        async with asyncio.timeout(20):
            assert await submit.wait(fleet.connection, [task_id], timeout_s=60, on_result=came.append) == set()
        assert [result.id for result in came] == [task_id]


@in_loop
async def test_one_task_that_is_too_large_keeps_all_from_being_queued(server: NatsServer) -> None:
    """Their ids are new each time: half of them queued would be queued twice by the next try."""
    async with operator(server.url) as fleet:
        tasks = [Claim(str(uuid4()), "t", {"x": "y" * size}) for size in (1, 9 << 20, 1)]
        with pytest.raises(Refused, match=r"task 2: 9\.00 MiB are more than the 8\.00 MiB"):
            await submit.submit(fleet.connection, tasks)
        assert (await fleet.stream(subjects.TASKS))["messages"] == 0


@in_loop
async def test_what_was_queued_before_a_failure_is_reported(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "AT_ONCE", 1)
    async with operator(server.url) as fleet:
        tasks = [Claim(str(uuid4()), "t") for _ in range(5)]
        genuine = fleet.connection.store

        async def store(subject: str, *of: Any) -> bool:
            if tasks[3].id in subject:
                raise RequestError("gives no answer")
            return await genuine(subject, *of)

        monkeypatch.setattr(fleet.connection, "store", store)
        queued: list[str] = []
        with pytest.raises(RequestError):
            await submit.submit(fleet.connection, tasks, on_queued=queued.append)
        assert queued == [task.id for task in tasks[:3]]
