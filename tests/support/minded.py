"""A slot whose task is minded: scripted parts, a scripted GPU, the real minder and performer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from supervisor.linux.clock import SystemClock
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.ownership import Own
from supervisor.tasks import monitor as minding
from supervisor.tasks.attempt import Slot
from supervisor.tasks.executors.base import FreezeFailed, Rung
from supervisor.tasks.monitor import Minder
from supervisor.tasks.process.rungs import RungName
from supervisor.tasks.workdir import Workdir

CLOCK = SystemClock()
ON_GPU = Own(1, 2.0, 5.0)
LEFT = Own(left="2 GiB by pid 7, which is gone", left_by=(7,))
FREE = Own()
KILLED = {"status": -9, "stderr": "oh"}
Look = tuple[Gpu | None, Own]


@dataclass
class ScriptedGpu:
    """Says one look after the other; the last one for ever."""

    looks: list[Look] = field(default_factory=lambda: [(Gpu(), FREE)])
    error: str = "the NVIDIA driver hangs"
    age_s: float = 0.0
    asked: int = 0

    @property
    def own(self) -> Own:
        return self.looks[0][1]

    def latest(self, now_s: float) -> Reading[Gpu]:
        return Reading(self.looks[0][0], self.error, "NVML", now_s - self.age_s)

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        self.asked += 1
        if len(self.looks) > 1:
            del self.looks[0]
        return self.latest(CLOCK.now_s())


class IcyTask(ScriptedTask):
    """One that can be frozen, or says why not."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__()
        self.refuses, self.ice = refuses, list[str]()

    async def freeze(self) -> Rung:
        if self.refuses:
            raise FreezeFailed(self.refuses)
        self.ice.append("frozen")
        return Rung(RungName.FROZEN, 0.001)

    async def thaw(self) -> Rung:
        self.ice.append("thawed")
        return Rung(RungName.THAWED, 0.001)


@dataclass
class Rig:
    """A minded slot."""

    gpu: ScriptedGpu
    minder: Minder
    slot: Slot
    source: ScriptedSource
    executor: ScriptedExecutor
    performer: Performer
    limits: list[Limits]
    types: dict[str, TaskType]
    settings: list[GpuSettings]

    async def do(self, row: str | None, *effects: Effect) -> list[str]:
        """Perform these; what is said of each."""
        plan = Plan(BY_ID[row] if row else None, effects, Observation(CLOCK.now_s()), Memory(State.RUNNING), self.limits[0])
        outcome = await self.performer.perform(plan)
        assert all(r.ok for r in outcome.results), outcome
        return [r.detail for r in outcome.results]

    async def fails(self, row: str, effect: Effect) -> str:
        """Perform this, which fails; why."""
        plan = Plan(BY_ID[row], (effect,), Observation(CLOCK.now_s()), Memory(State.RUNNING), self.limits[0])
        (result,) = (await self.performer.perform(plan)).results
        assert not result.ok
        return result.detail


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(minding, "LOOK_S", 0.02)
    source, gpu, executor = ScriptedSource(claim()), ScriptedGpu(), ScriptedExecutor(IcyTask())
    slot, limits, types = Slot(source), [Limits()], {"render": TaskType(argv=["x"])}
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 0.3)
    settings = [GpuSettings()]
    minder = Minder(CLOCK, lambda: gpu, lambda: limits[0], lambda: settings[0], lambda: types)
    performer = Performer(
        slot, ScriptedInhibitor(), Workdir(tmp_path / "work"), lambda _: executor, lambda: types, CLOCK, lambda: None,  # type: ignore[arg-type]
        minder=minder,
    )
    yield Rig(gpu, minder, slot, source, executor, performer, limits, types, settings)
    minder.end()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


START = (Effect.INHIBIT, Effect.START)
OUT = (Effect.STOP, Effect.HAND_BACK, Effect.WIPE, Effect.RELEASE)
