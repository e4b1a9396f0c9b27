"""A pause at a sign: frozen and thawed by the real performer; a GPU task's VRAM moved out by a scripted
checkpointer, and by the real one with real processes over the CUDA stand-in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.attempt_rig import (
    CLOCK,
    FREE,
    ON_GPU,
    OUT,
    START,
    FreezableTask,
    Look,
    Rig,
    ScriptedGpu,
    ScriptedSleep,
    rig,
    until,
)
from support.cuda_standin import CudaStandIn, cuda, cuda_library
from support.parts import ID, claim
from support.task_bench import Bench, contained, py, run
from support.trees import until_async

from states.effects import Effect
from states.limits import Limits
from states.observation import Gpu, TaskPhase
from supervisor.config.generate import runtime_yaml
from supervisor.config.load import ConfigErrors, load
from supervisor.config.schema import TaskType
from supervisor.sensors.gpu.ownership import TaskUse
from supervisor.tasks.context import TaskContext, TaskSettings
from supervisor.tasks.cuda_checkpoint import Checkpointer
from supervisor.tasks.executors.base import CheckpointFailed, FreezeFailed, Rung, RunningTask
from supervisor.tasks.pause import Pause
from supervisor.tasks.process.containment import Bounds, Containment
from supervisor.tasks.process.rungs import RungName

__all__ = ["contained", "cuda", "cuda_library", "rig"]  # fixtures
HOLDS = Limits(hold_s=30, max_gpu_percent=100)
SETTLE = (Effect.SETTLE, Effect.WIPE, Effect.RELEASE)


@dataclass
class ScriptedCheckpointer:
    """Does and says what it is told, and notes when beside the task's freezing."""

    log: list[str]
    problem: str = ""
    restored: bool = False
    out_fails: CheckpointFailed | None = None
    back_fails: CheckpointFailed | None = None
    vram: list[float] = field(default_factory=list)

    async def begin(self) -> None:
        """It is ready."""

    def end(self) -> None:
        """It is over."""
        self.log.append("end")

    async def out(self, pids: Collection[int], limit_s: float, vram_gb: float) -> tuple[Rung, ...]:
        """See Checkpointer."""
        self.log.append("out")
        self.vram.append(vram_gb)
        if self.out_fails is not None:
            raise self.out_fails
        return Rung(RungName.LOCKED, 0.003), Rung(RungName.VRAM_OUT, 0.12)

    async def back(self, pids: Collection[int], limit_s: float) -> tuple[Rung, ...]:
        """See Checkpointer."""
        self.log.append("back")
        if self.back_fails is not None:
            raise self.back_fails
        self.restored = True
        return (Rung(RungName.VRAM_BACK, 0.08),)


def task_of(rig: Rig) -> FreezableTask:
    task = rig.executor.task
    assert isinstance(task, FreezableTask)
    return task


def on_gpu(rig: Rig, **faults: CheckpointFailed) -> ScriptedCheckpointer:
    """The next task may be checkpointed, and is on the GPU until its VRAM is out."""
    rig.set(limits=HOLDS, render=TaskType(argv=["x"], checkpoint="cuda"))
    there = ScriptedCheckpointer(task_of(rig).log, **faults)
    rig.attempts.context.make_checkpointer = lambda: there  # type: ignore[assignment, return-value]
    rig.gpu.looks = [(Gpu(), ON_GPU), (Gpu(), FREE)]
    return there


def test_a_false_alarm_costs_the_task_a_pause(rig: Rig) -> None:
    rig.set(limits=HOLDS)

    async def story() -> None:
        await rig.do("task-claimed", *START)
        assert not rig.attempt.pinned
        assert await rig.do("on-hold", Effect.FREEZE) == ["frozen 1 ms"]
        usage = rig.attempt.usage()
        assert usage is not None
        assert (usage["on_hold"], usage["frozen"]) == (True, True)
        assert rig.attempts.observe().phase is TaskPhase.RUNNING
        assert await rig.do("false-alarm", Effect.THAW) == ["thawed 1 ms"]
        usage = rig.attempt.usage()
        assert usage is not None
        assert (usage["on_hold"], usage["frozen"]) == (False, False)
        assert rig.attempt.note == "", "that was no pause for its load"
        rig.executor.task.alive, rig.executor.task.result = False, {"n": 2}
        await rig.do("task-ended", *SETTLE)

    asyncio.run(story())
    assert task_of(rig).log == ["frozen", "thawed"]
    assert rig.source.outbox == [("settled", ID, {"n": 2}, None)]


def test_a_hold_that_was_no_false_alarm_ends_in_a_stop_with_its_grace(rig: Rig) -> None:
    rig.set(limits=HOLDS, render=TaskType(argv=["x"], grace_sec=3))

    async def story() -> None:
        await rig.do("task-claimed", *START)
        await rig.do("on-hold", Effect.FREEZE)
        await rig.do("user-returned", *OUT)

    asyncio.run(story())
    assert task_of(rig).log == ["frozen"]
    assert rig.executor.task.graces == [3]
    assert rig.source.outbox == [("handed back", ID, "the person came back", "resubmit")]


def test_a_task_that_holds_vram_is_not_held(rig: Rig) -> None:
    rig.set(limits=HOLDS)
    rig.gpu.looks = [(Gpu(), ON_GPU)]

    async def story() -> str:
        await rig.do("task-claimed", *START)
        assert rig.attempt.pinned
        said = await rig.fails("on-hold", Effect.FREEZE)
        rig.gpu.looks = [(Gpu(), FREE)]
        await rig.do("user-returned", *OUT)
        return said

    assert asyncio.run(story()) == "it is on the GPU, and frozen would keep its VRAM (tasks.<type>.checkpoint)"
    assert task_of(rig).log == []


def test_vram_goes_out_before_the_freeze_and_comes_back_after_the_thaw(rig: Rig) -> None:
    there = on_gpu(rig)

    async def story() -> list[str]:
        await rig.do("task-claimed", *START)
        assert not rig.attempt.pinned
        said = await rig.do("on-hold", Effect.FREEZE)
        assert rig.attempt.grace_s() == 0, "it would wait for the GPU"
        said += await rig.do("false-alarm", Effect.THAW)
        assert rig.attempt.grace_s() > 0
        rig.gpu.looks = [(Gpu(), FREE)]
        said += (await rig.do("user-returned", *OUT))[:1]
        return said

    out = "locked 3 ms, VRAM out 120 ms"
    frozen, thawed, stopped = asyncio.run(story())
    assert (frozen, thawed) == (f"{out}, frozen 1 ms", "thawed 1 ms, VRAM back 80 ms")
    assert stopped.startswith(f"{out}, frozen 1 ms, gone 2 ms, VRAM free after "), "one that was restored must not end with it"
    assert there.log[:5] == ["out", "frozen", "thawed", "back", "out"]
    assert there.vram[0] == ON_GPU.vram_gb
    assert rig.executor.task.graces == [0.0]


@pytest.mark.parametrize(
    ("on_the_gpu", "back", "to_stop", "at_once"),
    [
        (False, False, False, True),
        (False, False, True, True),
        (True, False, False, False),
        (True, False, True, True),
        (True, True, True, False),
    ],
)
def test_what_must_leave_the_gpu_first_is_not_frozen_at_once(
    rig: Rig, on_the_gpu: bool, back: bool, to_stop: bool, at_once: bool
) -> None:
    """A lock on a frozen process hangs. `back`: it got its VRAM back after a hold, and must not end with it."""
    there = on_gpu(rig)
    rig.gpu.looks = [(Gpu(), ON_GPU if on_the_gpu else FREE)]

    async def story() -> None:
        await rig.do("task-claimed", *START)
        there.restored = back
        ordered: list[str] = []
        rig.executor.task.freeze_now = lambda: ordered.append("freeze")  # type: ignore[method-assign]
        rig.attempt.freeze_now(to_stop=to_stop)
        assert bool(ordered) is at_once
        rig.gpu.looks = [(Gpu(), FREE)]
        await rig.do("user-returned", *OUT)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ([(Gpu(), ON_GPU), (Gpu(), TaskUse(1, 1.5, 0.0))], "1.5 GiB of its VRAM are still there"),
        ([(Gpu(), ON_GPU), (None, FREE)], "whether its VRAM is out of the way cannot be seen: the NVIDIA driver hangs"),
    ],
)
def test_the_drivers_word_is_not_enough(rig: Rig, looks: list[tuple[Gpu | None, TaskUse]], words: str) -> None:
    on_gpu(rig)

    async def story() -> str:
        await rig.do("task-claimed", *START)
        rig.gpu.looks = looks  # type: ignore[assignment]
        said = await rig.fails("on-hold", Effect.FREEZE)
        rig.gpu.looks = [(Gpu(), FREE)]
        await rig.do("user-returned", *OUT)
        return said

    assert asyncio.run(story()) == words
    assert rig.executor.task.graces == [0.0]


@pytest.mark.parametrize("usable", [True, False])
def test_vram_that_cannot_be_moved_out_ends_in_a_stop(rig: Rig, usable: bool) -> None:
    on_gpu(rig, out_fails=CheckpointFailed("the driver says no", usable=usable))

    async def story() -> str:
        await rig.do("task-claimed", *START)
        said = await rig.fails("on-hold", Effect.FREEZE)
        rig.gpu.looks = [(Gpu(), FREE)]
        await rig.do("user-returned", *OUT)
        return said

    assert asyncio.run(story()) == "its VRAM could not be moved out: the driver says no"
    assert rig.executor.task.graces == [5.0 if usable else 0.0], "what is spoilt gets no grace"
    assert rig.source.outbox == [("handed back", ID, "the person came back", "resubmit")]


def test_a_task_that_does_not_get_its_vram_back_is_handed_back_not_failed(rig: Rig) -> None:
    on_gpu(rig, back_fails=CheckpointFailed("out of memory", usable=False))

    async def story() -> str:
        await rig.do("task-claimed", *START)
        await rig.do("on-hold", Effect.FREEZE)
        said = await rig.fails("false-alarm", Effect.THAW)
        await until(lambda: rig.attempts.observe().phase is TaskPhase.FAILED)
        await rig.performer.check_end()
        await rig.do("task-ended", *SETTLE)
        return said

    assert asyncio.run(story()) == "its VRAM could not be given back: out of memory"
    why = "it could not go on after a hold: its VRAM could not be given back: out of memory"
    assert rig.source.outbox == [("handed back", ID, why, "resubmit")]
    assert rig.executor.task.graces == [0.0]


def test_a_task_that_dies_without_its_vram_is_handed_back(rig: Rig) -> None:
    on_gpu(rig)

    async def story() -> None:
        await rig.do("task-claimed", *START)
        await rig.do("on-hold", Effect.FREEZE)
        rig.executor.task.alive, rig.executor.task.error = False, "signal: 11"
        await rig.performer.check_end()
        await rig.do("user-returned", *SETTLE)

    asyncio.run(story())
    assert rig.source.outbox == [("handed back", ID, "it ended while its VRAM was moved out of the way", "resubmit")]


def test_a_pause_for_its_load_is_not_mixed_up_with_a_hold(rig: Rig) -> None:
    """Frozen for its load: thawed for the lock, and not thawed by its account while it is on hold."""
    there = on_gpu(rig)
    rig.set(limits=Limits(hold_s=30, max_gpu_percent=1))
    busy = TaskUse(1, 2.0, 80.0)
    rig.gpu.looks = [(Gpu(), busy)]

    async def story() -> None:
        await rig.do("task-claimed", *START)
        await until(lambda: there.log == ["frozen"])
        rig.gpu.looks = [(Gpu(), busy), (Gpu(), FREE)]
        await rig.do("on-hold", Effect.FREEZE)
        rig.set(limits=Limits(hold_s=30, max_gpu_percent=100))  # all may be used: its account would let it go on
        watch = rig.attempt._monitor
        assert watch is not None
        for _ in range(2):
            looked = watch.usage
            await until(lambda looked=looked: watch.usage is not looked)
        assert there.log == ["frozen", "thawed", "out", "frozen"]
        await rig.do("user-returned", *OUT)

    asyncio.run(story())


def test_what_no_type_asks_for_loads_no_driver_and_what_cannot_be_used_is_said(rig: Rig) -> None:
    rig.set(limits=HOLDS)
    rig.gpu.looks = [(Gpu(), ON_GPU)]

    async def story() -> None:
        await rig.do("task-claimed", *START)
        assert rig.attempt.note == ""
        rig.gpu.looks = [(Gpu(), FREE)]
        await rig.do("user-returned", *OUT)
        rig.source.waiting, rig.executor.task = claim(), FreezableTask()
        there = on_gpu(rig)
        there.problem = "no NVIDIA driver is loaded: install driver 570 or newer"
        await rig.do("task-claimed", *START)
        assert rig.attempt.pinned
        assert rig.attempt.note == f"a task on the GPU is stopped, not held: {there.problem}"

    asyncio.run(story())


# --- real processes, the real helper, the stand-in driver


class Unconfirmed(Pause):
    """The scripted GPU knows nothing of the stand-in's VRAM."""

    async def _confirm_out(self) -> None:
        pass


async def checkpointed(task: RunningTask, cuda: CudaStandIn, looks: list[Look]) -> Pause:
    """The pause of a task whose type asks for checkpoints, with its helper ready."""
    context = TaskContext(CLOCK, ScriptedGpu(looks), ScriptedSleep(), TaskSettings())
    pause = Unconfirmed(task, context, Checkpointer(proc_root=cuda.proc, sys_root=cuda.sys))
    assert pause._begin is not None
    await pause._begin
    return pause


def test_a_real_tree_whose_vram_goes_out_and_comes_back(contained: Containment, tmp_path: Path, cuda: CudaStandIn) -> None:
    """Never a lock on what is frozen, never a restore on what is: for the stand-in hangs there, as the driver does."""
    work = """
import itertools, os, time
for n in itertools.count():
    with open("n.new", "w") as file: file.write(str(n))
    os.replace("n.new", "n")
    time.sleep(0.001)
"""

    async def body(bench: Bench) -> None:
        task = await bench.start(*py(work))
        await until_async((bench.folder / "n").exists)
        (pid,) = task.pids()
        cuda.uses_cuda(pid)
        pause = await checkpointed(task, cuda, looks=[(Gpu(), ON_GPU)])
        assert not pause.pinned
        for _ in range(2):
            assert [rung.name for rung in await pause.freeze()] == ["locked", "VRAM out", "frozen"]
            assert cuda.state(pid) == "checkpointed"
            reached = (bench.folder / "n").read_text()
            await asyncio.sleep(0.05)
            assert (bench.folder / "n").read_text() == reached, "it stands still"
            assert [rung.name for rung in await pause.thaw()] == ["thawed", "VRAM back", "unlocked"]
            assert cuda.state(pid) == "running"
            await until_async(lambda seen=reached: (bench.folder / "n").read_text() != seen)
        assert (await pause.move_out())[0].name == "locked"
        await task.stop(0.0)
        pause.end()
        once = [f"{call} {pid}" for call in ("lock", "checkpoint", "restore", "unlock")]
        assert cuda.order() == [*once, *once, f"lock {pid}", f"checkpoint {pid}"]
        assert {call[-1] for call in cuda.calls() if call[0] in ("lock", "restore")} == {"running"}

    run(contained, tmp_path, body)


def test_a_hung_driver_ends_in_a_stop(contained: Containment, tmp_path: Path, cuda: CudaStandIn) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.start("sleep", "1000")
        (pid,) = task.pids()
        cuda.uses_cuda(pid)
        cuda.plays("delay.checkpoint=600000")
        pause = await checkpointed(task, cuda, looks=[(Gpu(), ON_GPU)])
        with pytest.raises(FreezeFailed, match="its VRAM could not be moved out"):
            await pause.freeze()
        assert pause.skips_grace
        assert await pause.move_out() == ()
        await task.stop(0.0)
        pause.end()

    began_s = CLOCK.now_s()
    run(contained, tmp_path, body)
    assert CLOCK.now_s() - began_s < 30


# --- its settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: {x: {argv: [a], checkpoint: cuda}}", "tasks.x.checkpoint: found cuda, allowed: none without a hold_sec"),
        ("work: {hold_sec: 5}\ntasks: {x: {argv: [a], checkpoint: cuda, hold_sec: 0}}", "tasks.x.checkpoint: found cuda"),
        ("tasks: {quality_loop: {executor: ollama_api, hold_sec: 5}}", "tasks.quality_loop.hold_sec: found 5, allowed: 0 for"),
        ("work: {hold_sec: 3601}", "work.hold_sec: found 3601, allowed: a number ≥ 0 and ≤ 3600"),
        ("tasks: {x: {argv: [a], checkpoint: criu, hold_sec: 1}}", "tasks.x.checkpoint: found criu, allowed: one of none"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "runtime.yaml").write_text(runtime_yaml())
    (tmp_path / "node.yaml").write_text(text + "\n")
    with pytest.raises(ConfigErrors) as errors:
        load(tmp_path)
    assert words in str(errors.value)


def test_settings_become_limits(tmp_path: Path) -> None:
    (tmp_path / "runtime.yaml").write_text(runtime_yaml())
    (tmp_path / "node.yaml").write_text(
        "work: {hold_sec: 20}\ntasks: {a: {argv: [a]}, b: {argv: [b], hold_sec: 0}, c: {argv: [c], hold_sec: 7},\n"
        "  quality_loop: {executor: ollama_api}}\n"
    )
    limits = load(tmp_path).limits
    assert [limits.hold_of(kind) for kind in ("a", "b", "c", "quality_loop")] == [20, 0, 7, 0]
    assert Limits().hold_of("a") == 0


def test_what_comes_out_of_vram_is_not_swapped() -> None:
    memory = frozenset({"memory"})
    assert Bounds(swap=False).files(memory)["memory.swap.max"] == "0"
    assert "memory.swap.max" not in Bounds().files(memory)
    assert os.sep not in "".join(Bounds(swap=False).files(memory))
