"""The performer: every effect is done in order, bounded and reported; what fails stops nothing that comes after it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.attempt_rig import ScriptedGpu, ScriptedSleep
from support.clock import ManualClock
from support.parts import ID, ScriptedExecutor, ScriptedInhibitor, ScriptedSource, ScriptedTask, claim
from support.simulated import UnwatchedAttempt

from states.effects import Effect
from states.lifecycle import Outcome, Plan
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Automation, Link, Observation
from states.table import BY_ID
from supervisor.config.schema import TaskType
from supervisor.daemon import performer as performing
from supervisor.daemon.inhibitor import InhibitRefused
from supervisor.daemon.performer import HAND_BACK_REASONS, Performer
from supervisor.journal.effect_text import effect_detail
from supervisor.tasks.attempt import Attempts
from supervisor.tasks.context import TaskContext, TaskSettings
from supervisor.tasks.workdir import Workdir

STOP, SETTLE, BACK, WIPE, RELEASE = Effect.STOP, Effect.SETTLE, Effect.HAND_BACK, Effect.WIPE, Effect.RELEASE


@dataclass
class Rig:
    """A performer over scripted parts."""

    source: ScriptedSource
    attempts: Attempts
    inhibitor: ScriptedInhibitor
    workdir: Workdir
    executor: ScriptedExecutor
    types: dict[str, TaskType]
    performer: Performer
    extended: list[float]
    sleep: ScriptedSleep

    def do(self, row: str | None, *effects: Effect, memory: Memory | None = None) -> list[tuple[str, bool, str]]:
        """(effect, ok, the journal's text) of each."""
        return [(str(r.effect), r.ok, effect_detail(r)) for r in self.outcome(row, *effects, memory=memory).results]

    def outcome(
        self, row: str | None, *effects: Effect, memory: Memory | None = None, seen: Observation | None = None
    ) -> Outcome:
        seen = seen or Observation(1000.0)
        plan = Plan(BY_ID[row] if row else None, effects, seen, memory or Memory(State.RUNNING), Limits())
        return asyncio.run(self.performer.perform(plan))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    source, sleep, clock = ScriptedSource(claim()), ScriptedSleep(), ManualClock()
    inhibitor, executor, workdir = ScriptedInhibitor(), ScriptedExecutor(), Workdir(tmp_path / "work")
    types, extended = {"render": TaskType(argv=["x"], grace_sec=5)}, list[float]()
    context = TaskContext(clock, ScriptedGpu(), sleep, TaskSettings(types=types))
    attempts = Attempts(source, context, UnwatchedAttempt)
    performer = Performer(attempts, inhibitor, workdir, lambda _: executor, clock, lambda: None, extended.append)  # type: ignore[arg-type]
    return Rig(source, attempts, inhibitor, workdir, executor, types, performer, extended, sleep)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs here may take a tenth of a second."""
    monkeypatch.setattr(performing, "DEADLINE_S", performing.DEADLINE_S | {Effect.START: 0.1, STOP: 0.1})


def running(rig: Rig, task: ScriptedTask | None = None) -> ScriptedTask:
    rig.executor.task = task or ScriptedTask()
    assert rig.outcome("task-claimed", Effect.INHIBIT, Effect.START).results[-1].ok
    return rig.executor.task


def test_in_and_out(rig: Rig) -> None:
    assert rig.do("task-claimed", Effect.INHIBIT, Effect.START) == [
        ("inhibit", True, "locks on sleep and idle taken"), ("start", True, ""),
    ]
    assert rig.inhibitor.held
    assert len(list(rig.workdir.root.iterdir())) == 1
    rig.executor.task.alive, rig.executor.task.result = False, {"n": 2}
    assert rig.do("task-ended", SETTLE, WIPE, RELEASE) == [
        ("settle", True, "succeeded"), ("wipe", True, ""), ("release", True, "locks released"),
    ]
    assert rig.source.outbox == [("settled", ID, {"n": 2}, None)]
    assert list(rig.workdir.root.iterdir()) == []
    assert rig.attempts.empty


def test_a_start_that_fails_in_any_way_is_the_tasks_failure_and_quotes_nothing(rig: Rig) -> None:
    """Else the claim would be started again at every tick."""

    async def start(claim: Any, workdir: Path, wake: Any) -> Any:
        raise RuntimeError(f"cannot run {claim.payload}")

    rig.executor.start = start  # type: ignore[method-assign]
    said = "the task could not be started (RuntimeError)"
    assert rig.do("task-claimed", Effect.INHIBIT, Effect.START)[1] == ("start", False, said)
    assert rig.do("task-ended", SETTLE, WIPE, RELEASE)[0] == ("settle", True, f"failed: {said}")


def test_a_refused_lock_puts_the_hand_back_in_the_place_of_the_rest(rig: Rig) -> None:
    rig.inhibitor.refuses = InhibitRefused("polkit refuses")
    outcome = rig.outcome("task-claimed", Effect.INHIBIT, Effect.START)
    assert outcome.vetoed
    assert [(r.effect, r.ok) for r in outcome.results] == [(Effect.INHIBIT, False), (BACK, True)]
    assert rig.source.outbox == [("handed back", ID, "the sleep inhibitor was refused", "resubmit")]
    assert rig.executor.started == []
    assert rig.attempts.empty


@pytest.mark.parametrize(("row", "why"), [r for r in HAND_BACK_REASONS.items() if r[0] not in ("unsafe", "switched-off")])
def test_the_task_goes_back_with_the_reason_of_the_row(rig: Rig, row: str, why: str) -> None:
    running(rig)
    assert all(ok for _, ok, _ in rig.do(row, STOP, BACK, WIPE, RELEASE))
    assert rig.source.outbox == [("handed back", ID, why, "resubmit")]


def off(reason: str, source: str) -> Observation:
    return Observation(1000.0, Automation(False, reason, source))


@pytest.mark.parametrize(
    ("row", "state", "seen", "why"),
    [
        ("switched-off", State.RUNNING, off("paused by bob until 18:00", "operator"), "paused by bob until 18:00"),
        ("switched-off", State.RUNNING, off("the node is stopping (SIGTERM)", "operator"), "the node is stopping (SIGTERM)"),
        ("switched-off", State.RUNNING, off("runtime.yaml:1:1: x", "configuration"), "the node's configuration is broken"),
        ("switched-off", State.RUNNING, off("automation.enabled is false", "runtime.yaml"), "automation.enabled is false"),
        ("switched-off", State.RUNNING, Observation(1000.0, Automation(True), link=Link.LOST), "the control node was given up"),
        (None, State.DISABLED, off("paused by bob until 18:00", "operator"), "paused by bob until 18:00"),
        ("unsafe", State.READY, Observation(1000.0, Automation(True)), "somebody is at the machine"),
        (None, State.IDLE_WAIT, Observation(1000.0, Automation(True)), "somebody is at the machine"),
    ],
)
def test_the_submitter_is_told_the_true_reason(rig: Rig, row: str | None, state: State, seen: Observation, why: str) -> None:
    """Also for a claim whose answer came late, when the node no longer wanted one."""
    if state is State.RUNNING:
        running(rig)
    rig.outcome(row, BACK, memory=Memory(state), seen=seen)
    assert rig.source.outbox == [("handed back", ID, why, "resubmit")]


@pytest.mark.parametrize(
    ("kind", "row", "grace_s"),
    [
        (TaskType(grace_sec=5), "user-returned", 5.0),
        (TaskType(grace_sec=60), "going-down", 4.0),
        (TaskType(grace_sec=2), "going-down", 2.0),
        (TaskType(grace_sec=5, on_yield="kill"), "user-returned", 0.0),
    ],
)
def test_the_grace_is_the_types_and_short_before_a_sleep(rig: Rig, kind: TaskType, row: str, grace_s: float) -> None:
    task = running(rig)
    rig.types["render"] = kind
    rig.sleep.going_down = "the machine is about to sleep" if row == "going-down" else ""
    rig.do(row, STOP)
    assert task.graces == [grace_s]
    assert rig.extended[-1] == performing.DEADLINE_S[STOP] + grace_s


def test_a_timeout_is_the_tasks_failure_with_its_limit(rig: Rig) -> None:
    running(rig)
    rig.do("timed-out", STOP, SETTLE, WIPE, RELEASE)
    ((_, _, result, error),) = rig.source.outbox
    assert result == {}
    assert error.startswith("timeout: stopped after 3 h")


def test_an_unknown_type_and_a_failed_start_are_the_tasks_failure(rig: Rig) -> None:
    rig.types.clear()
    rig.types["b"], rig.types["a"] = TaskType(), TaskType()
    outcome = rig.do("task-claimed", Effect.INHIBIT, Effect.START)
    assert outcome[-1] == ("start", False, "unknown task type 'render'; this node runs: a, b")
    rig.do("task-ended", SETTLE, WIPE, RELEASE)
    assert rig.source.outbox[-1][3] == outcome[-1][2]
    rig.source.waiting, rig.types["render"], rig.executor.fails = claim(), TaskType(), "x: not found"
    assert rig.do("task-claimed", Effect.INHIBIT, Effect.START)[-1] == ("start", False, "x: not found")
    assert str(rig.attempts.observe().phase) == "failed"


FAULTS: dict[str, Any] = {
    "stop": lambda rig: setattr(rig.executor.task, "stop_fails", "pid 7 (sleep) lives"),
    "hand_back": lambda rig: setattr(rig.source, "fault", OSError(28, "No space left on device")),
    "wipe": lambda rig: setattr(rig.workdir, "wipe_all", fails_to_wipe),
    "release": lambda rig: setattr(rig.inhibitor, "release_fails", RuntimeError("as planned")),
}


def fails_to_wipe(kept: object) -> int:
    raise OSError(16, "1 entry would not go")


@pytest.mark.parametrize("which", FAULTS)
def test_what_fails_is_reported_and_the_rest_is_done(rig: Rig, which: str) -> None:
    running(rig)
    FAULTS[which](rig)
    done = rig.do("user-returned", STOP, BACK, WIPE, RELEASE)
    assert [name for name, ok, _ in done if not ok] == [which]
    assert [name for name, _, _ in done] == ["stop", "hand_back", "wipe", "release"]
    assert all(detail for name, ok, detail in done if not ok)


def test_everything_that_fails_at_once(rig: Rig) -> None:
    running(rig)
    for fault in FAULTS.values():
        fault(rig)
    done = rig.do("user-returned", STOP, BACK, WIPE, RELEASE)
    assert [ok for _, ok, _ in done] == [False] * 4


@pytest.mark.usefixtures("hasty")
def test_what_hangs_is_cut_off_and_the_rest_is_done(rig: Rig) -> None:
    running(rig, ScriptedTask(stop_hangs=True))
    rig.types["render"] = TaskType(grace_sec=0)
    done = rig.do("user-returned", STOP, BACK, WIPE, RELEASE)
    assert done[0] == ("stop", False, "not done within 0 s")
    assert [ok for _, ok, _ in done[1:]] == [True] * 3
    assert rig.attempts.pids() == {7}  # seen to live, it keeps its place until it is gone
    rig.executor.task.stop_hangs = False
    assert rig.do(None, STOP, memory=Memory(State.COOLDOWN)) == [("stop", True, "frozen 1 ms, gone 2 ms")]
    assert rig.attempts.empty


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", ["faulty", "hangs", "no space"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_task_that_this_node_cannot_start_goes_back_and_fails_only_after_two_lost_attempts(
    rig: Rig, lost: int, fault: str
) -> None:
    """Nothing is known against the task the first time; a task that no node can start must not go round for ever."""
    rig.source.waiting = replace(claim(), lost=lost)
    rig.executor.faulty, rig.executor.hangs = "no unit for the task" if fault == "faulty" else "", fault == "hangs"
    if fault == "no space":
        rig.workdir.root.write_text("in the way of the folder")
    assert rig.do("task-claimed", Effect.INHIBIT, Effect.START)[-1][:2] == ("start", False)
    assert str(rig.attempts.observe().phase) == "failed"
    assert rig.performer.node_fault
    rig.do("task-ended", SETTLE, RELEASE)
    [(how, _, *rest)] = rig.source.outbox
    assert how == ("handed back" if lost == 0 else "settled")
    assert ("this node could not start it" in rest[0]) if lost == 0 else rest[1].endswith("it is not tried again")
    assert rig.source.lost == ([1] if lost == 0 else []), "the next node must know of it"


def test_a_task_that_cannot_start_by_its_own_fault_fails_and_says_nothing_against_the_node(rig: Rig) -> None:
    rig.executor.fails = "bad payload: it has no command"
    rig.do("task-claimed", Effect.INHIBIT, Effect.START)
    rig.do("task-ended", SETTLE, WIPE, RELEASE)
    assert rig.source.outbox == [("settled", ID, {}, "bad payload: it has no command")]
    assert not rig.performer.node_fault


def test_a_start_that_is_called_off_is_no_fault_of_node_or_task(rig: Rig) -> None:
    rig.executor.hangs = True

    async def story() -> None:
        plan = Plan(BY_ID["task-claimed"], (Effect.START,), Observation(1000.0), Memory(State.READY), Limits())
        performing = asyncio.ensure_future(rig.performer.perform(plan))
        while not rig.executor.started:
            await asyncio.sleep(0)
        rig.performer.call_off_start("the person came back")
        assert not (await performing).results[0].ok

    asyncio.run(story())
    assert not rig.performer.node_fault
    rig.do("user-returned", SETTLE, WIPE, RELEASE)
    assert rig.source.outbox == [("handed back", ID, "the person came back", "resubmit")]
    assert rig.source.lost == [0]
    rig.performer.call_off_start("nothing is being started: nothing happens")


def test_an_owed_hand_back_keeps_the_reason_of_its_first_try(rig: Rig) -> None:
    running(rig)
    rig.source.fault = OSError("no")
    rig.do("gpu-taken", STOP, BACK, WIPE, RELEASE)
    rig.source.fault = None
    assert rig.do(None, BACK, memory=Memory(State.COOLDOWN)) == [("hand_back", True, "the GPU was needed")]
    assert rig.source.outbox == [("handed back", ID, "the GPU was needed", "resubmit")]


def test_an_owed_wipe_keeps_the_folder_of_the_task_that_runs(rig: Rig) -> None:
    left = rig.workdir.fresh("left")
    running(rig)
    mine = rig.attempts.take().workdir
    assert rig.do(None, WIPE, memory=Memory(State.RUNNING)) == [("wipe", True, "")]
    assert mine is not None
    assert mine.exists()
    assert not left.exists()
    rig.do("user-returned", STOP, BACK, WIPE, RELEASE)
    assert not mine.exists()


def test_a_cancelled_performance_is_cancelled(rig: Rig) -> None:
    async def test() -> None:
        rig.executor.hangs = True
        plan = Plan(BY_ID["task-claimed"], (Effect.INHIBIT, Effect.START), Observation(1000.0), Memory(State.READY), Limits())
        work = asyncio.create_task(rig.performer.perform(plan))
        while not rig.executor.started:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(test())


def test_nothing_in_hand_is_a_failure_in_words(rig: Rig) -> None:
    rig.source.waiting = None
    for effect in (Effect.START, SETTLE, BACK):
        ((_, ok, detail),) = rig.do(None, effect)
        assert not ok
        assert "no task is in hand" in detail
    assert rig.do(None, STOP) == [("stop", True, "nothing to stop")]
