"""The attempts of a node: their phase, what is left of one, and what a stop may take before a sleep."""

from __future__ import annotations

import asyncio

import pytest
from support.attempt_rig import OUT, START, FreezableTask, Rig, rig, until
from support.parts import ID, ScriptedSource, ScriptedTask, claim

from states.effects import Effect
from states.ending import EndingKind
from states.observation import NO_TASK, TaskPhase
from supervisor.config.schema import TaskType
from supervisor.tasks import attempt as attempts_module
from supervisor.tasks.attempt import Attempts

__all__ = ["rig"]  # a fixture


def attempts_of(source: ScriptedSource, rig: Rig) -> Attempts:
    return Attempts(source, rig.attempts.context)


@pytest.mark.parametrize(
    ("waiting", "asking", "phase"),
    [
        (False, False, TaskPhase.NONE),
        (False, True, TaskPhase.ASKED),
        (True, False, TaskPhase.CLAIMED),
    ],
)
def test_the_phase_before_a_claim_is_taken(rig: Rig, waiting: bool, asking: bool, phase: TaskPhase) -> None:
    attempts = attempts_of(ScriptedSource(claim() if waiting else None, asking), rig)
    task = attempts.observe()
    assert task.phase is phase
    assert (task.id == ID) is waiting
    assert attempts.empty is not (waiting or asking)


def test_nothing_is_one_and_the_same_nothing(rig: Rig) -> None:
    assert attempts_of(ScriptedSource(), rig).observe() is NO_TASK


@pytest.mark.parametrize(
    ("changes", "limit", "phase"),
    [
        ({}, "", TaskPhase.RUNNING),
        ({}, "limit: memory", TaskPhase.RUNNING),
        ({"alive": False}, "", TaskPhase.ENDED),
        ({"alive": False}, "limit: memory", TaskPhase.FAILED),
        ({"alive": False, "error": "exit: code 3"}, "", TaskPhase.FAILED),
    ],
)
def test_the_phase_of_a_started_task(rig: Rig, changes: dict[str, object], limit: str, phase: TaskPhase) -> None:
    async def story() -> None:
        assert rig.attempts.observe().phase is TaskPhase.CLAIMED
        rig.attempts.take()
        assert rig.attempts.observe().phase is TaskPhase.CLAIMED
        await rig.do("task-claimed", *START)
        if limit:
            rig.attempt.fail_at_limit(limit)
        for name, value in changes.items():
            setattr(rig.executor.task, name, value)
        assert rig.attempts.observe().phase is phase

    asyncio.run(story())


def test_a_stopped_task_has_ended_whatever_its_process_says(rig: Rig) -> None:
    async def story() -> None:
        await rig.do("task-claimed", *START)
        rig.executor.task.error = "signal: 9"
        await rig.do("user-returned", Effect.STOP)
        assert rig.attempts.observe().phase is TaskPhase.ENDED

    asyncio.run(story())


def test_a_claim_is_taken_once_and_kept(rig: Rig) -> None:
    attempt = rig.attempts.take()
    assert rig.attempts.take() is attempt
    assert attempt.claim == claim()
    assert rig.source.waiting is None
    rig.attempts.deliver(attempt.ending_for("the person came back"))
    with pytest.raises(LookupError):
        rig.attempts.take()


def test_a_process_that_would_not_stop_stays_known_after_its_ending(rig: Rig) -> None:
    async def story() -> None:
        await rig.do("task-claimed", *START)
        task = rig.executor.task
        task.stop_fails = "still alive"
        await rig.fails("user-returned", Effect.STOP)
        await rig.do("user-returned", Effect.HAND_BACK)
        assert rig.attempts.current is None
        assert rig.attempts.pids() == frozenset({7})
        assert rig.attempts.cpu_s() == 1.5
        assert not rig.attempts.empty
        task.stop_fails = ""
        assert await rig.do(None, Effect.STOP) == ["frozen 1 ms, gone 2 ms"]
        assert task.graces[-1] == 0.0, "it had its grace"
        assert rig.attempts.empty
        assert rig.attempts.pids() == frozenset()
        assert rig.attempts.cpu_s() == 0.0

    asyncio.run(story())


def test_an_ending_that_the_source_cannot_keep_leaves_the_attempt(rig: Rig) -> None:
    attempt = rig.attempts.take()
    rig.source.fault = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        rig.attempts.deliver(attempt.ending_for("the GPU was needed"))
    assert rig.attempts.current is attempt
    rig.source.fault = None
    ending = attempt.ending_for("")
    assert (ending.kind, ending.error) == (EndingKind.HANDED_BACK, "the GPU was needed"), "the reason of the first try"


# --- before a sleep


@pytest.mark.parametrize(
    ("delay_max_s", "grace_s", "stop_s"),
    [(None, 60, 4.0), (5.0, 60, 4.0), (5.0, 2, 2), (10.0, 60, 9.0), (30.0, 20, 20), (1.0, 60, 0.0), (0.0, 60, 0.0)],
)
def test_a_stop_before_a_sleep_takes_no_longer_than_logind_waits(
    rig: Rig, delay_max_s: float | None, grace_s: float, stop_s: float
) -> None:
    rig.set(render=TaskType(argv=["x"], grace_sec=grace_s))
    rig.sleep.delay_max_s = delay_max_s

    async def story() -> None:
        await rig.do("task-claimed", *START)
        rig.sleep.going_down = "the machine is about to sleep"
        await rig.do("going-down", *OUT)

    asyncio.run(story())
    assert rig.executor.task.graces == [stop_s]


def test_a_sleep_that_is_announced_during_the_grace_shortens_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "SLEEP_POLL_S", 0.01)
    rig.set(render=TaskType(argv=["x"], grace_sec=60))
    task = SlowTask()
    rig.executor.task = task

    async def story() -> None:
        await rig.do("task-claimed", *START)
        stopping = asyncio.ensure_future(rig.do("user-returned", *OUT))
        await until(lambda: task.graces)
        rig.sleep.going_down = "the machine is about to sleep"
        assert (await stopping)[0] == "frozen 1 ms, gone 2 ms"

    asyncio.run(story())
    assert task.graces == [60, 4.0]


class SlowTask(FreezableTask):
    """One that uses its whole grace: the shortest that was given counts."""

    async def stop(self, grace_s: float) -> tuple[object, ...]:  # type: ignore[override]
        first = not self.graces
        self.graces.append(grace_s)
        while first and len(self.graces) == 1:
            await asyncio.sleep(0.001)
        self.graces, kept = [], self.graces
        rungs = await ScriptedTask.stop(self, grace_s)
        self.graces = kept
        return rungs


def test_the_limits_follow_logind(rig: Rig) -> None:
    for rig.sleep.delay_max_s, stop_s, read_s in ((None, 4.0, 4.5), (60.0, 59.0, 59.5), (0.2, 0.0, 0.0)):
        context = rig.attempts.context
        assert (context.stop_limit_s, context.read_limit_s) == (stop_s, read_s)


# --- the person's path


def test_the_freeze_is_ordered_before_anything_else(rig: Rig) -> None:
    async def story() -> None:
        await rig.do("task-claimed", *START)
        ordered: list[str] = []
        rig.executor.task.freeze_now = lambda: ordered.append("freeze")  # type: ignore[method-assign]
        rig.attempt.freeze_now(to_stop=True)
        assert ordered == ["freeze"]
        await rig.do("user-returned", *OUT)

    asyncio.run(story())
