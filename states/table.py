"""The one place that says which state may follow which.

Rules of this file: rows are tried from top to bottom, the first whose conditions all hold fires, one a tick. `fails(g)`
holds when g is not proven: False and unknown alike, so unknown never passes. `effects` None means "whatever the phase
of the task asks for on the way out" (states/effects.py, LEAVE). Ids are cited by journal, status, tests and diagrams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from states.effects import ENTER, GO_ON, HOLD, LEAVE_TIMED_OUT, NEXT, SETTLED, Effect
from states.guards import (
    SAFE,
    Guard,
    Judge,
    automation_on,
    cooldown_over,
    cpu_free,
    gpu_free,
    hold_over,
    host_fit,
    host_staying,
    may_hold,
    on_hold,
    stay_young,
    task_claimed,
    task_gone,
    task_here,
    task_in_time,
    task_over,
    user_away,
)
from states.memory import State

DISABLED, IDLE_WAIT, READY, RUNNING, COOLDOWN = State


@dataclass(frozen=True, slots=True)
class Condition:
    """`wanted` True: every guard is proven. `wanted` False: at least one is not."""

    guards: tuple[Guard, ...]
    wanted: bool


def holds(*guards: Guard) -> Condition:
    """Every one of these is proven."""
    return Condition(guards, True)


def fails(*guards: Guard) -> Condition:
    """At least one of these is not proven: it is False, or unknown."""
    return Condition(guards, False)


@dataclass(frozen=True, slots=True)
class Row:
    """From any of `sources`, when all of `when` hold, to `to`, with `effects`; `why` for the reader and the diagram."""

    id: str
    sources: tuple[State, ...]
    when: tuple[Condition, ...]
    to: State
    why: str
    effects: tuple[Effect, ...] | None = ()
    # (judges, wanted) pairs, flattened once so that a tick calls nothing else.
    tests: tuple[tuple[tuple[Judge, ...], bool], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tests", tuple((tuple(g.judge for g in c.guards), c.wanted) for c in self.when))


LIVE: Final = (IDLE_WAIT, READY, RUNNING, COOLDOWN)
OUT: Final = None  # the effects of the task's phase on the way out of RUNNING
TAKEN: Final = (user_away, gpu_free, cpu_free)  # a frozen task is in nobody's way here; on a host that is unfit it still is

ROWS: Final = (
    Row("switched-off", LIVE, (fails(automation_on),), DISABLED, "what is switched off is not lent", OUT),
    Row("switched-on", (DISABLED,), (holds(automation_on, task_gone),), IDLE_WAIT, "automation is on, and nothing of ours is alive"),
    Row("safe", (IDLE_WAIT,), (holds(*SAFE, cooldown_over, task_gone),), READY, "nobody is there and the machine is free"),
    Row("unsafe", (READY,), (fails(*SAFE),), IDLE_WAIT, "above task-claimed: a claim never outruns a sign"),
    Row("task-claimed", (READY,), (holds(task_claimed, *SAFE, task_gone),), RUNNING, "work is here and it is still safe", ENTER),
    Row("going-down", (RUNNING,), (fails(host_staying),), COOLDOWN, "the machine is about to sleep or shut down", OUT),
    Row("on-hold", (RUNNING,), (holds(may_hold, host_fit), fails(*TAKEN)), RUNNING, "perhaps a false alarm: frozen first", HOLD),
    Row("user-returned", (RUNNING,), (fails(user_away), holds(hold_over)), COOLDOWN, "the person comes first", OUT),
    Row("gpu-taken", (RUNNING,), (fails(gpu_free), holds(hold_over)), COOLDOWN, "others need the GPU, or nobody knows", OUT),
    Row("cpu-taken", (RUNNING,), (fails(cpu_free), holds(hold_over)), COOLDOWN, "others need the CPU, or nobody knows", OUT),
    Row("host-unfit", (RUNNING,), (fails(host_fit),), COOLDOWN, "power, memory or temperature forbid work, or nobody knows", OUT),
    Row("timed-out", (RUNNING,), (fails(task_in_time),), COOLDOWN, "a task that takes too long has failed", LEAVE_TIMED_OUT),
    Row("false-alarm", (RUNNING,), (holds(on_hold, *SAFE),), RUNNING, "proven safe again before the hold was over", GO_ON),
    Row("next-task", (RUNNING,), (holds(task_claimed, *SAFE),), RUNNING, "what was asked for in time is started", NEXT),
    Row("task-settled", (RUNNING,), (holds(task_over, task_here, stay_young, *SAFE),), RUNNING, "the stay is young: ask for another", SETTLED),
    Row("task-ended", (RUNNING,), (holds(task_over),), COOLDOWN, "nothing is left to do, or the stay is used up", OUT),
    Row("cooled-down", (COOLDOWN,), (holds(cooldown_over, task_gone),), IDLE_WAIT, "the rest is over and the last process is gone"),
)

BY_STATE: Final = {state: tuple(row for row in ROWS if state in row.sources) for state in State}
BY_ID: Final = {row.id: row for row in ROWS}

# What each state waits for: `blocked_by`, and what `why` shows first.
WAITS_FOR: Final = {
    DISABLED: (automation_on,),
    IDLE_WAIT: (*SAFE, cooldown_over, task_gone),
    READY: SAFE,
    RUNNING: SAFE,
    COOLDOWN: (cooldown_over, task_gone),
}

__all__ = ["BY_ID", "BY_STATE", "ROWS", "WAITS_FOR", "Condition", "Row", "State", "fails", "holds"]
