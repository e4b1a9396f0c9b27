"""The slot: its phase in every combination of claim, poll and process."""

from __future__ import annotations

import pytest
from support.parts import ScriptedSource, ScriptedTask, claim

from states.observation import NO_TASK, TaskPhase
from supervisor.tasks.attempt import Slot


@pytest.mark.parametrize(
    ("waiting", "asking", "taken", "tree", "failure", "stopped", "phase"),
    [
        (False, False, False, None, "", False, TaskPhase.NONE),
        (False, True, False, None, "", False, TaskPhase.ASKED),
        (True, False, False, None, "", False, TaskPhase.CLAIMED),
        (False, False, True, None, "", False, TaskPhase.CLAIMED),
        (False, False, True, ScriptedTask(), "", False, TaskPhase.RUNNING),
        (False, False, True, ScriptedTask(alive=False), "", False, TaskPhase.ENDED),
        (False, False, True, ScriptedTask(alive=False, error="exit code 3"), "", False, TaskPhase.FAILED),
        (False, False, True, None, "no such program", False, TaskPhase.FAILED),
        (False, False, True, ScriptedTask(), "timeout", False, TaskPhase.FAILED),
        (False, False, True, ScriptedTask(alive=False, error="killed"), "", True, TaskPhase.ENDED),
        (False, False, False, ScriptedTask(), "", False, TaskPhase.NONE),
        (True, False, False, ScriptedTask(), "", False, TaskPhase.CLAIMED),
    ],
)
def test_the_phase(
    waiting: bool, asking: bool, taken: bool, tree: ScriptedTask | None, failure: str, stopped: bool, phase: TaskPhase
) -> None:
    source = ScriptedSource(claim() if waiting else None, asking)
    slot = Slot(source)
    slot.claim, slot.tree, slot.failure, slot.stopped = (claim() if taken else None), tree, failure, stopped
    task = slot.task()
    assert task.phase is phase
    assert (task.id == claim().id) is (waiting or taken)
    assert slot.empty is not (waiting or asking or taken or tree is not None)


def test_nothing_is_one_and_the_same_nothing() -> None:
    assert Slot(ScriptedSource()).task() is NO_TASK


def test_a_claim_is_taken_once_and_kept() -> None:
    slot = Slot(ScriptedSource(claim()))
    assert slot.take() == slot.take() == claim()
    assert slot.source.waiting is None
    slot.close()
    with pytest.raises(LookupError):
        slot.take()


def test_a_process_that_would_not_stop_keeps_its_place_after_its_claim() -> None:
    slot = Slot(ScriptedSource(claim()))
    slot.take()
    slot.tree = tree = ScriptedTask()
    slot.close()
    assert slot.tree is tree
    assert slot.pids() == frozenset({7})
    assert slot.cpu_s() == 1.5
    assert not slot.empty
    tree.alive = False
    slot.close()
    assert slot.empty
    assert slot.pids() == frozenset()
    assert slot.cpu_s() == 0.0


def test_the_outcome_is_the_failure_before_the_process() -> None:
    slot = Slot(ScriptedSource(claim()))
    assert slot.outcome() == ({}, "the task never ran")
    slot.tree = ScriptedTask(alive=False, result={"n": 1})
    assert slot.outcome() == ({"n": 1}, None)
    slot.failure = "timeout: stopped"
    assert slot.outcome() == ({}, "timeout: stopped")
