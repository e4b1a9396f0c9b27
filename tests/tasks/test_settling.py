"""Every task is settled or handed back exactly once, whatever ends it, in whatever order, and whatever fails on the way.

The real lifecycle, performer and attempts over scripted parts: what ends the task, what else happens in the same tick, a
stop and an outbox that fail the first time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.attempt_rig import ScriptedGpu, ScriptedSleep
from support.clock import ManualClock
from support.model import LIMITS, NOW, Signs, observe
from support.parts import ID, ScriptedExecutor, ScriptedInhibitor, ScriptedSource, ScriptedTask, claim
from support.simulated import UnwatchedAttempt

from states.lifecycle import Lifecycle
from states.memory import State
from states.observation import TaskPhase
from supervisor.config.schema import TaskType
from supervisor.daemon.performer import Performer
from supervisor.tasks.attempt import Attempts
from supervisor.tasks.context import TaskContext, TaskSettings
from supervisor.tasks.workdir import Workdir

OK = Signs()
FAULT = "limit: memory 5 GiB, limit 4 GiB (tasks.render.max_memory_gb)"


class House:
    """One node with one task, up to where it runs."""

    def __init__(self, folder: Path) -> None:
        self.source, self.executor = ScriptedSource(claim()), ScriptedExecutor()
        self.clock = ManualClock()
        settings = TaskSettings(LIMITS, types={"render": TaskType(argv=["x"])})
        context = TaskContext(self.clock, ScriptedGpu(), ScriptedSleep(), settings)
        self.attempts = Attempts(self.source, context, UnwatchedAttempt)
        parts = (self.attempts, ScriptedInhibitor(), Workdir(folder), lambda _: self.executor)
        self.performer = Performer(*parts, self.clock, lambda: None, lambda _: None)  # type: ignore[arg-type]
        self.lifecycle = Lifecycle(LIMITS, NOW)
        self.now_s, self.rows = NOW, list[str]()

    @property
    def task(self) -> ScriptedTask:
        return self.executor.task

    async def tick(self, signs: Signs = OK, later_s: float = 1.0) -> None:
        self.now_s += later_s
        seen = observe(signs, TaskPhase.NONE)
        shift = self.now_s - NOW
        readings = {
            name: replace(reading, read_at_s=reading.read_at_s + shift)
            for name in ("person", "gpu", "cpu", "host") if (reading := getattr(seen, name))
        }
        if readings["person"].value is not None:
            away = replace(readings["person"].value, last_sign_at_s=readings["person"].value.last_sign_at_s + shift)
            readings["person"] = replace(readings["person"], value=away)
        plan = self.lifecycle.propose(replace(seen, now_s=self.now_s, task=self.attempts.observe(), **readings))
        outcome = await self.performer.perform(plan)
        self.lifecycle.commit(plan, outcome)
        self.rows += [plan.row.id] if plan.row is not None and not outcome.vetoed else []

    async def up(self) -> None:
        self.source.waiting = None
        await self.tick()
        await self.tick()
        assert self.lifecycle.state is State.READY
        self.source.waiting = claim()
        await self.tick()
        assert self.lifecycle.state is State.RUNNING


def ends(house: House) -> None:
    house.task.alive, house.task.result = False, {"n": 1}


def fails(house: House) -> None:
    house.task.alive, house.task.error, house.task.result = False, "exit: code 3", {"status": 3, "stderr": "oh"}


def passes_a_limit(house: House) -> None:
    house.attempts.take().fail_at_limit(FAULT)


def passes_a_limit_and_gone(house: House) -> None:
    house.attempts.take().fail_at_limit(FAULT)
    house.task.alive, house.task.error, house.task.result = False, "signal: 9 (SIGKILL)", {"status": -9, "stderr": "oh"}


def goes_on(house: House) -> None:
    pass


ENDS: list[Callable[[House], None]] = [goes_on, ends, fails, passes_a_limit, passes_a_limit_and_gone]
SIGNS = [
    OK, Signs(user="no"), Signs(user="unknown"), Signs(gpu="no"), Signs(gpu="held"), Signs(cpu="no"), Signs(host="no"),
    Signs(host="going-down"), Signs(automation="off"), Signs(automation="lost"),
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("outbox_fails", "stop_fails", "late"), list(itertools.product((False, True), repeat=3)))
def test_exactly_once(tmp_path: Path, end: Callable[[House], None], outbox_fails: bool, stop_fails: bool, late: bool) -> None:
    """`late`: the time is up in the same tick."""

    async def story(number: int, signs: Signs) -> House:
        house = House(tmp_path / str(number))
        await house.up()
        end(house)
        if outbox_fails:
            house.source.fault = OSError(28, "No space left on device")
        if stop_fails:
            house.task.stop_fails = "still alive"
        await house.tick(signs, LIMITS.task_timeout_s if late else 1.0)
        house.source.fault, house.task.stop_fails = None, ""
        for _ in range(3):  # what is owed; and an outcome that was already given may not be given again
            await house.tick(signs)
        for _ in range(3):
            await house.tick(Signs(automation="off"))
        return house

    for number, signs in enumerate(SIGNS):
        house = asyncio.run(story(number, signs))
        where = f"{signs}, {house.rows}: {house.source.outbox}"
        assert len(house.source.outbox) == 1, where
        assert house.attempts.current is None, where
        assert not house.task.alive, where
        kind, task_id, *rest = house.source.outbox[0]
        assert task_id == ID
        timed_out = "timed-out" in house.rows
        if end is ends and not timed_out:
            assert (kind, rest) == ("settled", [{"n": 1}, None]), where
        elif end is fails:
            assert (kind, rest) == ("settled", [{"status": 3, "stderr": "oh"}, "exit: code 3"]), where
        elif end is passes_a_limit_and_gone or (end is passes_a_limit and not timed_out):
            assert (kind, rest[1]) == ("settled", FAULT), where
        elif timed_out:
            assert kind == "settled", where
            assert rest[1].startswith("timeout: "), where
        else:
            assert (kind, rest[1]) == ("handed back", "resubmit"), where
