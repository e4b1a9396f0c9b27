"""The loop: the person comes first. What stands between the look that sees a person and the freeze is nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.attempt_rig import CLOCK, OUT, START, Rig, rig
from support.clock import ManualClock
from support.parts import ID

from states.effects import Effect
from states.guards import user_away
from states.lifecycle import Lifecycle, Outcome, Plan
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading, TaskPhase
from states.table import BY_ID
from supervisor.daemon.loop import Daemon, Inbox
from supervisor.daemon.wiring import Node

__all__ = ["rig"]  # a fixture


class OneTick(Daemon):
    """A daemon whose journal, refresh and performer write down what they do, in order."""

    def __init__(self, rig: Rig, log: list[str], signs: list[float]) -> None:
        self.log, self.signs = log, signs
        limits = rig.attempts.context.settings.limits
        now_s = CLOCK.now_s()
        memory = Memory(State.RUNNING, now_s, running_since_s=now_s, started_at_s=now_s)
        node: Any = NodeOf(rig, log, signs)
        super().__init__(node, Lifecycle(limits, memory=memory), JournalOf(log), CLOCK, None, Inbox())  # type: ignore[arg-type]

    def _ask(self, *_: Any) -> None: ...

    def _check_invariants(self, *_: Any) -> None: ...

    def _report(self, *_: Any) -> None: ...


class JournalOf:
    """Writes down that it was written to."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def intent(self, plan: Plan) -> None:
        if not plan.quiet:
            self.log.append(f"journal: {plan.row.id if plan.row else None}")

    def outcome(self, plan: Plan, outcome: Outcome, memory: Memory) -> None:
        pass


class NodeOf:
    """The rig's attempts and performer; the signs of the person are scripted: one age in seconds for each look."""

    def __init__(self, rig: Rig, log: list[str], signs: list[float]) -> None:
        self.attempts, self.performer, self.metrics = rig.attempts, rig.performer, None
        self.limits, self.log, self.signs = rig.attempts.context.settings.limits, log, signs
        perform = self.performer.perform

        async def performed(plan: Plan) -> Outcome:
            self.log.append("perform")
            return await perform(plan)

        self.performer.perform = performed  # type: ignore[method-assign]

    async def refresh(self) -> None:
        self.log.append("refresh")

    def look(self, now_s: float) -> Observation:
        self.log.append("look")
        idle_s = self.signs.pop(0)

        def reading(value: Any) -> Reading[Any]:
            return Reading(value, "", "scripted", now_s)

        return Observation(
            now_s, Automation(True), reading(Person(now_s - idle_s)), reading(Gpu(1, 1)), reading(Cpu(5)), reading(Host()),
            self.attempts.observe(),
        )  # fmt: skip


def started(rig: Rig, log: list[str]) -> Any:
    async def start() -> None:
        await rig.do("task-claimed", *START)
        rig.executor.task.freeze_now = lambda: log.append("freeze")  # type: ignore[method-assign]

    return start()


def test_a_returning_person_is_first_looked_for_and_the_task_is_frozen_before_anything_is_written(rig: Rig) -> None:
    log: list[str] = []

    async def story() -> None:
        await started(rig, log)
        assert await OneTick(rig, log, [0.0]).tick()

    asyncio.run(story())
    assert log == ["look", "freeze", "journal: user-returned", "perform"]


def test_without_a_sign_the_rest_of_the_tick_follows(rig: Rig) -> None:
    log: list[str] = []

    async def story() -> None:
        await started(rig, log)
        assert not await OneTick(rig, log, [7200.0, 7200.0]).tick()
        await rig.do("user-returned", *OUT)

    asyncio.run(story())
    assert log == ["look", "refresh", "look", "perform", "perform"]


def test_a_sign_during_the_rest_of_the_tick_is_seen_by_the_second_look(rig: Rig) -> None:
    log: list[str] = []

    async def story() -> None:
        await started(rig, log)
        assert await OneTick(rig, log, [7200.0, 0.0]).tick()

    asyncio.run(story())
    assert log == ["look", "refresh", "look", "freeze", "journal: user-returned", "perform"]


def test_a_task_that_has_ended_is_read_before_it_is_settled(rig: Rig) -> None:
    """The GPU is read in `refresh`: a row that settles the task must not come before it."""
    log: list[str] = []

    async def story() -> None:
        await started(rig, log)
        rig.executor.task.alive = False
        assert await OneTick(rig, log, [7200.0, 7200.0]).tick()

    asyncio.run(story())
    assert log == ["look", "refresh", "look", "journal: task-settled", "perform"]


@pytest.mark.parametrize("effect", [Effect.STOP, Effect.FREEZE])
def test_every_effect_that_stops_the_task_begins_with_the_freeze(rig: Rig, effect: Effect) -> None:
    log: list[str] = []

    async def story() -> None:
        await started(rig, log)
        now = Observation(CLOCK.now_s())
        for effects, first in (((Effect.RELEASE, effect), True), ((Effect.SETTLE,), False)):
            plan = Plan(BY_ID["user-returned"], effects, now, Memory(State.RUNNING), rig.attempts.context.settings.limits)
            assert rig.performer.begin(plan) is first
        await rig.do("user-returned", *OUT)

    asyncio.run(story())
    assert log == ["freeze"]


@pytest.mark.parametrize("row", ["task-claimed", "next-task"])
def test_who_comes_back_while_a_task_is_being_started_does_not_wait_for_the_start(rig: Rig, row: str) -> None:
    """The start hangs; the sign comes by an event."""
    log: list[str] = []
    rig.executor.hangs = True

    async def story() -> None:
        daemon = OneTick(rig, log, [7200.0, 0.0])
        daemon.lifecycle = Lifecycle(rig.attempts.context.settings.limits, memory=Memory(State.READY, CLOCK.now_s()))
        if row == "next-task":
            daemon.lifecycle = Lifecycle(rig.attempts.context.settings.limits, memory=daemon_memory())
        ticking = asyncio.ensure_future(daemon.tick())
        while not rig.executor.started:
            await asyncio.sleep(0)
        daemon.wake()
        assert await ticking
        assert rig.attempts.observe().phase is TaskPhase.FAILED
        await rig.do("user-returned", Effect.SETTLE, Effect.RELEASE)

    asyncio.run(story())
    assert [outcome[:3] for outcome in rig.source.outbox] == [("handed back", ID, "the person came back")]


def daemon_memory() -> Memory:
    """RUNNING, between two tasks."""
    now_s = CLOCK.now_s()
    return Memory(State.RUNNING, now_s, running_since_s=now_s)


@pytest.mark.parametrize(
    ("due_in_s", "now_in_s", "known"),
    [
        (28.0, 0.0, True), (28.0, 27.0, True), (28.0, 28.0, True), (28.0, 37.0, True), (28.0, 39.0, False),
        (0.0, 9.0, True), (0.0, 11.0, False), (-60.0, 9.0, True), (-60.0, 11.0, False),
    ],
)  # fmt: skip
def test_a_reading_ages_from_when_the_next_look_is_due(due_in_s: float, now_in_s: float, known: bool) -> None:
    """Read 5 s before the look, and good for 15 s: between two looks of a busy machine nobody was blind."""
    look_s = 1000.0
    seen = Observation(look_s, person=Reading(Person(0.0), "", "scripted", look_s - 5.0))
    node: Any = SimpleNamespace(
        last=seen, look_due_s=look_s + due_in_s, limits=Limits(max_age_person_s=15.0), clock=ManualClock(look_s + now_in_s)
    )
    verdict = user_away.explain(replace(seen, now_s=look_s + now_in_s), Memory(), Node.limits_now(node))
    assert (verdict.ok is True) is known, verdict.reason
    assert ("last look" in verdict.reason) is not known
