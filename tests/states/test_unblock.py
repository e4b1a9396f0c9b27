"""The one thing that would unblock the node, in words: for each hand that can hold it back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from states.limits import Limits
from states.memory import Memory, State
from states.observation import Automation, Cpu, Gpu, Host, Link, Observation, Person, Reading, Task, TaskPhase
from states.status import unblock

NOW = 10_000.0
OFF = Memory(State.DISABLED)
WAITS = Memory(State.IDLE_WAIT)
READY = Memory(State.READY)


def free(**changes: Any) -> Observation:
    """Nobody is there and everything is free, but for the changes; None is unknown."""
    values = {"person": Person(-1e6), "gpu": Gpu(4.0, 1.0), "cpu": Cpu(5.0), "host": Host()}
    readings = {
        name: Reading(changes.pop(name, value), "as planned", "test", NOW) for name, value in values.items()
    }
    return replace(Observation(NOW, Automation(True, source="runtime.yaml")), **readings, **changes)


def off(reason: str, source: str, until_s: float | None = None) -> Observation:
    return free(automation=Automation(False, reason, source, until_s))


@pytest.mark.parametrize(
    ("memory", "seen", "advice"),
    [
        (OFF, off("paused, until `rae-node resume`", "operator"), "`rae-node resume`"),
        (OFF, off("paused until 18:00", "operator", NOW + 7200), "wait 2 h, or `rae-node resume`"),
        (OFF, off("the node is stopping (SIGTERM)", "operator"), "the node is stopping; start it again"),
        (OFF, off("runtime.yaml:1:1: bad", "configuration"), "correct the configuration: runtime.yaml:1:1: bad"),
        (OFF, off("automation.enabled is false", "runtime.yaml"), "set automation.enabled to true in runtime.yaml"),
        (OFF, off("/opt/rae-node/logs: cannot be written", "node"), "/opt/rae-node/logs: cannot be written"),
        (OFF, free(link=Link.LOST, link_reason="given up"), "`rae-node resume` tries the control node again: given up"),
        (WAITS, free(person=Person(NOW - 180, "user active")), "wait 7 min (safety.idle_required_minutes)"),
        (WAITS, free(person=Person(NOW, "a film", lasts=True)), "this must end first: a film, away for 10 min required"),
        (WAITS, free(person=None), "make the person's signs readable: user unknown: as planned"),
        (WAITS, free(person=Person(NOW), cpu=Cpu(99.0)), "let the CPU load of others fall: "),
        (WAITS, free(gpu=Gpu(99.0, 1.0)), "free the GPU: GPU at 99 %"),
        (WAITS, free(gpu=Gpu(4.0, 1.0, 2)), "free the GPU: GPU used by 2 processes not RAE's; name what is RAE's"),
        (WAITS, free(host=Host(False, reason="on battery")), "repair the host: host unfit: on battery"),
        (replace(WAITS, cooldown_from_s=NOW - 60), free(), "wait 14 min (safety.cooldown_minutes)"),
        (READY, free(), "nothing blocks it, it waits for a task"),
        (READY, free(link=Link.DOWN, link_reason="connection refused"), "reach the control node: connection refused"),
        (replace(READY, veto="no lock on sleep"), free(), "let a task start: no lock on sleep"),
        (Memory(State.RUNNING), free(task=Task(TaskPhase.RUNNING, "1", "render")), "nothing blocks it"),
    ],
)
def test_there_is_one_thing_to_do(memory: Memory, seen: Observation, advice: str) -> None:
    said = unblock(seen, memory, Limits())
    assert said.startswith(advice)
    assert len(said.splitlines()) == 1
