"""Before a sleep the task is frozen and gone within the time that logind really waits, whatever the node is doing: the whole
ladder in made time, with a task that uses all of its grace, a driver that uses all of its time, and a GPU that is never free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.attempt_rig import FREE, LEFT, ON_GPU, OUT, START, FreezableTask, Rig, ScriptedGpu, ScriptedSleep
from support.clock import MadeLoop, ManualClock
from support.parts import ScriptedExecutor, ScriptedInhibitor, ScriptedSource, claim

from states.effects import Effect
from states.limits import Limits
from states.observation import Gpu, Reading
from supervisor.config.schema import TaskType
from supervisor.daemon.performer import Performer
from supervisor.tasks.attempt import SLEEP_POLL_S, Attempts
from supervisor.tasks.context import DELAY_MAX_S, SLEEP_MARGIN_S, TaskContext, TaskSettings
from supervisor.tasks.executors.base import CheckpointFailed, Rung
from supervisor.tasks.pause import CHECKPOINT_S
from supervisor.tasks.process.rungs import RungName
from supervisor.tasks.vram import LEAST_S
from supervisor.tasks.workdir import Workdir

GRACE_S = 20.0
SUSPENDING = "the machine is going to sleep"


class Stubborn(FreezableTask):
    """Ends only when it is killed. The shortest grace counts."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock, self.kill_at_s, self.frozen_s, self.gone_s = clock, 1e9, 1e9, 0.0

    def freeze_now(self) -> None:
        """See RunningTask."""
        self.frozen_s = min(self.frozen_s, self.clock.now_s())

    async def stop(self, grace_s: float) -> tuple[Rung, ...]:
        """See RunningTask."""
        self.freeze_now()
        self.kill_at_s = min(self.kill_at_s, self.clock.now_s() + grace_s)
        while self.clock.now_s() < self.kill_at_s:
            await asyncio.sleep(0.01)
        self.gone_s = self.gone_s or self.clock.now_s()
        self.alive = False
        return Rung(RungName.FROZEN, 0.001), Rung(RungName.GONE, self.gone_s - self.frozen_s)


class SlowCheckpointer:
    """Uses all of its time, and fails then; once `quick`, it does neither."""

    def __init__(self) -> None:
        self.problem, self.restored, self.quick = "", False, False

    async def begin(self) -> None:
        """It is ready."""

    def end(self) -> None:
        """It is over."""

    async def out(self, pids: Collection[int], limit_s: float, vram_gb: float) -> tuple[Rung, ...]:
        """See Checkpointer."""
        if not self.quick:
            await asyncio.sleep(limit_s)
            raise CheckpointFailed("not done in time", usable=False)
        self.restored = False
        return (Rung(RungName.VRAM_OUT, 0.1),)

    async def back(self, pids: Collection[int], limit_s: float) -> tuple[Rung, ...]:
        """See Checkpointer."""
        if not self.quick:
            await asyncio.sleep(limit_s)
            raise CheckpointFailed("not done in time", usable=False)
        self.restored = True
        return (Rung(RungName.VRAM_BACK, 0.1),)


class SlowGpu(ScriptedGpu):
    """Each look takes all the time that it may."""

    clock: ManualClock

    def latest(self, now_s: float) -> Reading[Gpu]:
        """See GpuSensor."""
        return Reading(self.looks[0][0], "", "NVML", self.clock.now_s())

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """See GpuSensor."""
        await asyncio.sleep(timeout_s)
        return await super().refresh(timeout_s)


class House(Rig):
    """One node in made time, whose task is on the GPU and was checkpointed before, if `restored`."""

    clock: ManualClock
    task: Stubborn
    checkpointer: SlowCheckpointer

    @classmethod
    def make(cls, folder: Path, clock: ManualClock, delay_max_s: float | None) -> House:
        """Complete, with nothing begun."""
        gpu, sleep, checkpointer = SlowGpu([(Gpu(), ON_GPU)]), ScriptedSleep(delay_max_s=delay_max_s), SlowCheckpointer()
        gpu.clock = clock
        kind = TaskType(argv=["x"], grace_sec=GRACE_S, checkpoint="cuda")
        settings = TaskSettings(Limits(hold_s=60.0), types={"render": kind})
        source, executor, extended = ScriptedSource(claim()), ScriptedExecutor(Stubborn(clock)), list[float]()
        context = TaskContext(clock, gpu, sleep, settings, make_checkpointer=lambda: checkpointer)  # type: ignore[arg-type, return-value]
        attempts, workdir = Attempts(source, context), Workdir(folder)
        performer = Performer(
            attempts, ScriptedInhibitor(), workdir, lambda _: executor, clock, lambda: None, extended.append,  # type: ignore[arg-type]
        )
        house = cls(gpu, sleep, attempts, source, executor, performer, extended)
        house.clock, house.checkpointer = clock, checkpointer
        assert isinstance(executor.task, Stubborn)
        house.task = executor.task
        return house

    def announce(self) -> None:
        """Logind says that the machine will sleep, and begins to wait."""
        self.sleep.going_down, self.sleep.announced_s = SUSPENDING, self.clock.now_s()

    async def go_down(self) -> None:
        """The next tick."""
        self.gpu.looks = [(Gpu(), LEFT)]
        self.attempt.freeze_now(to_stop=True)
        await self.do("going-down", *OUT)


def played(story: Callable[[House], Coroutine[Any, Any, None]], folder: Path, delay_max_s: float | None) -> House:
    """The story, in made time."""
    clock = ManualClock()
    house: list[House] = []

    async def body() -> None:
        house.append(House.make(folder, clock, delay_max_s))
        await house[0].do("task-claimed", *START)
        await asyncio.sleep(1.0)
        await story(house[0])

    with asyncio.Runner(loop_factory=lambda: MadeLoop(clock)) as runner:
        runner.run(body())
    return house[0]


DELAYS = pytest.mark.parametrize("delay_max_s", [0.0, 0.5, 1.0, 1.5, 2.0, 4.0, None, 30.0])


@DELAYS
@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("late_s", [0.0, 0.4, 0.9, 3.5])
def test_the_time_counts_from_the_announcement(
    tmp_path: Path, delay_max_s: float | None, restored: bool, late_s: float
) -> None:
    """However late the node comes to it."""

    async def story(house: House) -> None:
        house.checkpointer.restored = restored
        house.announce()
        house.clock.go(late_s)  # a busy machine
        await house.go_down()

    house = played(story, tmp_path, delay_max_s)
    most_s = DELAY_MAX_S if delay_max_s is None else delay_max_s
    announced_s = house.sleep.announced_s
    assert announced_s is not None
    due_s = max(late_s, min(most_s - SLEEP_MARGIN_S, GRACE_S + late_s))
    gone_s = house.task.gone_s - announced_s
    if restored:  # its driver has failed after CHECKPOINT_S at most: a task without its VRAM gets no grace
        due_s = min(due_s, late_s + CHECKPOINT_S)
    assert gone_s == pytest.approx(due_s, abs=0.05), "all that there is, and no more"
    if not restored or most_s - SLEEP_MARGIN_S <= late_s:
        assert house.task.frozen_s - announced_s == pytest.approx(late_s), "frozen first"
    assert house.clock.now_s() - announced_s <= max(most_s, late_s + 2 * LEAST_S), "the delay lock is given up in time"
    assert house.attempts.current is None
    assert house.source.outbox[0][0] == "handed back"


async def in_its_grace(house: House) -> None:
    await house.do("user-returned", *OUT)


async def while_its_vram_is_moved_out_for_a_stop(house: House) -> None:
    house.checkpointer.restored = True
    await house.do("user-returned", *OUT)


async def while_it_is_put_on_hold(house: House) -> None:
    assert "not done in time" in await house.fails("on-hold", Effect.FREEZE)


async def while_it_gets_its_vram_back(house: House) -> None:
    house.checkpointer.quick = True
    house.gpu.looks = [(Gpu(), ON_GPU), (Gpu(), FREE)]
    await house.do("on-hold", Effect.FREEZE)
    house.checkpointer.quick = False
    assert "not done in time" in await house.fails("false-alarm", Effect.THAW)


@DELAYS
@pytest.mark.parametrize(
    "busy", [in_its_grace, while_its_vram_is_moved_out_for_a_stop, while_it_is_put_on_hold, while_it_gets_its_vram_back]
)
def test_a_sleep_that_is_announced_meanwhile_ends_what_takes_longer(
    tmp_path: Path, delay_max_s: float | None, busy: Callable[[House], Coroutine[Any, Any, None]]
) -> None:
    async def story(house: House) -> None:
        work = asyncio.ensure_future(busy(house))
        await asyncio.sleep(1.0)
        assert not work.done()
        house.announce()
        await work
        if house.attempts.current is not None:
            await house.go_down()

    house = played(story, tmp_path, delay_max_s)
    announced_s = house.sleep.announced_s
    assert announced_s is not None
    most_s = max(0.0, (DELAY_MAX_S if delay_max_s is None else delay_max_s) - SLEEP_MARGIN_S)
    assert house.task.gone_s - announced_s <= most_s + SLEEP_POLL_S + 0.05
    assert house.attempts.current is None


def test_a_closed_lid_is_no_announcement(tmp_path: Path) -> None:
    """Logind waits from its own word on, which comes later."""

    async def story(house: House) -> None:
        house.sleep.going_down = "the lid is closed"
        stopping = asyncio.ensure_future(house.go_down())
        await asyncio.sleep(3.0)
        house.announce()
        await stopping

    house = played(story, tmp_path, 4.5)
    assert house.task.gone_s - house.task.frozen_s == pytest.approx(3.5, abs=0.05)
