"""An attempt among scripted parts: a scripted GPU, logind and executor; the real attempt, monitor, pause and performer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.parts import ScriptedExecutor, ScriptedInhibitor, ScriptedSource, ScriptedTask, claim

from states.effects import Effect
from states.lifecycle import Plan
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Gpu, Observation, Reading
from states.table import BY_ID
from supervisor.config.schema import GpuSettings, TaskType
from supervisor.daemon.performer import Performer
from supervisor.journal.effect_text import effect_detail
from supervisor.linux.clock import SystemClock
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.ownership import TaskUse
from supervisor.tasks import monitor
from supervisor.tasks.attempt import Attempt, Attempts
from supervisor.tasks.context import TaskContext, TaskSettings
from supervisor.tasks.executors.base import FreezeFailed, Rung
from supervisor.tasks.process.rungs import RungName
from supervisor.tasks.workdir import Workdir

CLOCK = SystemClock()
ON_GPU = TaskUse(1, 2.0, 5.0)
LEFT = TaskUse(left="2 GiB by pid 7, which is gone", left_by=(7,))
FREE = TaskUse()
KILLED = {"status": -9, "stderr": "oh"}
Look = tuple[Gpu | None, TaskUse]


@dataclass
class ScriptedGpu:
    """Says one look after the other; the last one for ever."""

    looks: list[Look] = field(default_factory=lambda: [(Gpu(), FREE)])
    error: str = "the NVIDIA driver hangs"
    age_s: float = 0.0
    asked: int = 0

    @property
    def own(self) -> TaskUse:
        return self.looks[0][1]

    def latest(self, now_s: float) -> Reading[Gpu]:
        return Reading(self.looks[0][0], self.error, "NVML", now_s - self.age_s)

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        self.asked += 1
        if len(self.looks) > 1:
            del self.looks[0]
        return self.latest(CLOCK.now_s())


class FreezableTask(ScriptedTask):
    """One that can be frozen, or says why not."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__()
        self.refuses, self.log = refuses, list[str]()

    async def freeze(self) -> Rung:
        if self.refuses:
            raise FreezeFailed(self.refuses)
        self.log.append("frozen")
        return Rung(RungName.FROZEN, 0.001)

    async def thaw(self) -> Rung:
        self.log.append("thawed")
        return Rung(RungName.THAWED, 0.001)


@dataclass
class ScriptedSleep:
    """What logind says of a coming sleep."""

    going_down: str = ""
    delay_max_s: float | None = None
    announced_s: float | None = None


@dataclass
class Rig:
    """A node's attempts, with scripted parts around them."""

    gpu: ScriptedGpu
    sleep: ScriptedSleep
    attempts: Attempts
    source: ScriptedSource
    executor: ScriptedExecutor
    performer: Performer
    extended: list[float]

    @property
    def attempt(self) -> Attempt:
        """The current one."""
        assert self.attempts.current is not None
        return self.attempts.current

    def set(self, *, limits: Limits | None = None, gpu: GpuSettings | None = None, **types: TaskType) -> None:
        """Change what is in force now."""
        context = self.attempts.context
        old = context.settings
        context.settings = replace(old, limits=limits or old.limits, gpu=gpu or old.gpu, types={**old.types, **types})

    async def do(self, row: str | None, *effects: Effect) -> list[str]:
        """Perform these; the journal's text of each."""
        limits = self.attempts.context.settings.limits
        plan = Plan(BY_ID[row] if row else None, effects, Observation(CLOCK.now_s()), Memory(State.RUNNING), limits)
        outcome = await self.performer.perform(plan)
        assert all(r.ok for r in outcome.results), outcome
        return [effect_detail(r) for r in outcome.results]

    async def fails(self, row: str, effect: Effect) -> str:
        """Perform this, which fails; why."""
        limits = self.attempts.context.settings.limits
        plan = Plan(BY_ID[row], (effect,), Observation(CLOCK.now_s()), Memory(State.RUNNING), limits)
        (result,) = (await self.performer.perform(plan)).results
        assert not result.ok
        return result.error


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(monitor, "LOOK_S", 0.02)
    source, gpu, sleep, executor = ScriptedSource(claim()), ScriptedGpu(), ScriptedSleep(), ScriptedExecutor(FreezableTask())
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 0.3)
    settings = TaskSettings(types={"render": TaskType(argv=["x"])})
    attempts, extended = Attempts(source, TaskContext(CLOCK, gpu, sleep, settings)), list[float]()
    performer = Performer(
        attempts, ScriptedInhibitor(), Workdir(tmp_path / "work"), lambda _: executor, CLOCK, lambda: None, extended.append,  # type: ignore[arg-type]
    )
    return Rig(gpu, sleep, attempts, source, executor, performer, extended)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


START = (Effect.INHIBIT, Effect.START)
OUT = (Effect.STOP, Effect.HAND_BACK, Effect.WIPE, Effect.RELEASE)
