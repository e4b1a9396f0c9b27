"""A watched attempt: limits by real processes, VRAM by a scripted GPU."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from support.attempt_rig import CLOCK, FREE, KILLED, LEFT, ON_GPU, OUT, START, FreezableTask, Look, Rig, rig, until
from support.parts import ID, ScriptedTask, claim

from states.effects import Effect
from states.ending import Ending, EndingKind, failed, succeeded
from states.limits import Limits
from states.observation import Gpu, TaskPhase
from supervisor.config.generate import runtime_yaml
from supervisor.config.load import load
from supervisor.config.schema import GpuSettings, TaskType
from supervisor.daemon.performer import HAND_BACK_REASONS
from supervisor.daemon.wiring import Node
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.ownership import TaskUse
from supervisor.tasks import attempt, usage, vram

__all__ = ["rig"]  # a fixture

TIMEOUT = "timeout: stopped after 60 s, the most that this node gives (tasks.render.timeout_minutes)"

# --- VRAM after the end


@pytest.mark.parametrize(
    ("looks", "presence", "words"),
    [
        ([(Gpu(), FREE)], "required", "VRAM free after 0 ms"),
        ([(Gpu(), LEFT), (Gpu(), LEFT), (Gpu(), FREE)], "required", "VRAM free after"),
        ([(Gpu(), LEFT), (None, FREE), (Gpu(), FREE)], "required", "VRAM free after"),
        ([(Gpu(present=False), FREE)], "optional", "VRAM free after"),
        ([(Gpu(), LEFT), (Gpu(held=LEFT.left), LEFT)], "required", "2 GiB by pid 7, which is gone"),
        ([(Gpu(), LEFT)], "required", "2 GiB by pid 7, which is gone"),
        ([(None, FREE)], "required", "VRAM not readable: the NVIDIA driver hangs"),
        ([(None, FREE)], "optional", "VRAM not readable (the NVIDIA driver hangs), and gpu.presence asks for no GPU"),
    ],
)
def test_vram_is_read_until_it_is_free_or_known_to_be_held(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, looks: list[Look], presence: Any, words: str
) -> None:
    monkeypatch.setattr(vram, "LATE_S", 0.1)
    free = words.startswith("VRAM free")
    rig.set(gpu=GpuSettings(presence=presence))
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 60 if free else 0.3)  # a slow machine is in time

    async def story() -> str:
        await rig.do("task-claimed", *START)
        rig.gpu.looks = [(Gpu(), ON_GPU), *looks]
        said = (await rig.do("user-returned", *OUT))[0]
        assert rig.attempts.current is None
        return said

    said = asyncio.run(story())
    assert said.startswith("frozen 1 ms, gone 2 ms, VRAM ")
    assert words.removesuffix("0 ms") in said
    assert ("VRAM still held after " in said) is (words == LEFT.left)
    assert rig.source.outbox == [("handed back", ID, "the person came back", "resubmit")]


def test_a_look_of_before_the_stop_proves_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vram, "LATE_S", 0.1)
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 1)

    async def story() -> str:
        await rig.do("task-claimed", *START)
        rig.gpu.looks, rig.gpu.age_s = [(Gpu(), ON_GPU), (Gpu(), FREE)], 9.0
        return (await rig.do("user-returned", *OUT))[0]

    assert asyncio.run(story()).endswith(": no reading within this time")
    assert rig.gpu.asked > 2


def test_before_a_sleep_nobody_waits_for_the_driver(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vram, "SLEEP_S", 0.1)
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 60)

    async def story() -> str:
        await rig.do("task-claimed", *START)
        rig.gpu.looks, rig.sleep.going_down = [(Gpu(), ON_GPU), (Gpu(), LEFT)], "the machine is about to sleep"
        return (await rig.do("going-down", *OUT))[0]

    began_s = CLOCK.now_s()
    assert "VRAM still held after " in asyncio.run(story())
    assert CLOCK.now_s() - began_s < 30  # not the time that the driver may take


def test_a_sleep_that_comes_while_it_waits_ends_the_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vram, "SLEEP_S", 0.1)
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 60)

    async def story() -> str:
        await rig.do("task-claimed", *START)
        rig.gpu.looks = [(Gpu(), ON_GPU), (Gpu(), LEFT)]
        stopping = asyncio.ensure_future(rig.do("user-returned", *OUT))
        await until(lambda: rig.gpu.asked > 1)
        rig.sleep.going_down = "the machine is about to sleep"
        return (await stopping)[0]

    assert "VRAM still held after " in asyncio.run(story())


def test_a_task_without_a_gpu_costs_no_look(rig: Rig) -> None:
    async def story() -> None:
        await rig.do("task-claimed", *START)
        await rig.do("user-returned", *OUT)

    asyncio.run(story())
    assert rig.gpu.asked == 0


def test_after_an_end_by_itself_it_is_read_before_the_result_is_settled(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 60)

    async def story() -> list[str]:
        await rig.do("task-claimed", *START)
        rig.gpu.looks = [(Gpu(), ON_GPU)]
        await until(lambda: rig.attempt._vram.pending)
        rig.executor.task.alive, rig.executor.task.result = False, {"n": 2}
        rig.gpu.looks = [(Gpu(), LEFT), (Gpu(), LEFT), (Gpu(), FREE)]
        await rig.performer.check_end()
        await rig.performer.check_end()
        return await rig.do("task-ended", Effect.SETTLE, Effect.WIPE, Effect.RELEASE)

    said = asyncio.run(story())[0]
    assert said.startswith("succeeded, VRAM free after ")
    assert rig.source.outbox == [("settled", ID, {"n": 2}, None)]


# --- its own limits


def test_a_limit_is_the_tasks_own_fault_whatever_else_happens(rig: Rig) -> None:
    """Over its limit, and then the person comes back before it is gone: settled once, as its failure, not posted again."""
    rig.executor.task.stop_hangs = True
    rig.set(render=TaskType(argv=["x"], max_vram_gb=1))
    rig.gpu.looks = [(Gpu(), ON_GPU), (Gpu(), FREE)]

    async def story() -> str:
        await rig.do("task-claimed", *START)
        await until(lambda: rig.attempt._limit)
        assert rig.attempts.observe().phase is TaskPhase.RUNNING
        rig.executor.task.stop_hangs = False
        return (await rig.do("user-returned", *OUT))[1]

    fault = "limit: VRAM 2 GiB, limit 1 GiB (tasks.render.max_vram_gb)"
    assert asyncio.run(story()) == f"settled in place of that, failed: {fault}"
    assert rig.source.outbox == [("settled", ID, {}, fault)]
    assert rig.executor.task.graces[0] == 0.0
    assert rig.attempts.empty


def test_only_a_running_task_passes_a_limit_and_the_first_one_counts(rig: Rig) -> None:
    async def story() -> None:
        await rig.do("task-claimed", *START)
        attempt = rig.attempt
        attempt.fail_at_limit("limit: memory")
        attempt.fail_at_limit("limit: disk")
        assert attempt.ending() == failed("limit: memory")
        rig.gpu.looks = [(Gpu(), FREE)]
        await rig.do("user-returned", *OUT)

    asyncio.run(story())
    assert rig.source.outbox == [("settled", ID, {}, "limit: memory")]

    async def after_its_stop() -> None:
        rig.source.waiting, rig.executor.task = claim(), FreezableTask()
        await rig.do("task-claimed", *START)
        await rig.do("user-returned", Effect.STOP)
        rig.attempt.fail_at_limit("limit: memory")
        await rig.do("user-returned", Effect.HAND_BACK)

    asyncio.run(after_its_stop())
    assert rig.source.outbox[1] == ("handed back", ID, "the person came back", "resubmit")


@pytest.mark.parametrize(
    ("process", "timed_out", "limit", "ending"),
    [
        (ScriptedTask(False, "signal: 9", KILLED), False, "", failed("signal: 9", KILLED)),
        (ScriptedTask(False, "signal: 9", KILLED), True, "", failed(TIMEOUT, KILLED, kind=EndingKind.TIMED_OUT)),
        (ScriptedTask(False, "signal: 9", {**KILLED, "more": 1}), False, "limit: x", failed("limit: x", KILLED)),
        (ScriptedTask(False, None, {"answer": 42}), True, "", failed(TIMEOUT, kind=EndingKind.TIMED_OUT)),
        (ScriptedTask(False, None, {"answer": 42}), False, "", succeeded({"answer": 42})),
        (None, False, "", failed("the task never ran")),
    ],
)
def test_a_stopped_task_shows_how_it_ended_and_the_end_of_its_stderr(
    rig: Rig, process: ScriptedTask | None, timed_out: bool, limit: str, ending: Ending
) -> None:
    attempt = rig.attempts.take()
    attempt.process, attempt._limit = process, limit
    if timed_out:
        attempt.time_out(60, own_limit=True)
    assert attempt.ending() == ending


def test_the_setting_that_timed_out_is_named(rig: Rig) -> None:
    async def story(limits: Limits) -> str:
        rig.set(limits=limits)
        rig.source.waiting = claim()
        await rig.do("task-claimed", *START)
        return (await rig.do("timed-out", Effect.STOP, Effect.SETTLE))[1]

    assert asyncio.run(story(Limits(task_timeouts_s={"render": 60}))).endswith("(tasks.render.timeout_minutes)")
    rig.executor.task = FreezableTask()
    assert asyncio.run(story(Limits())).endswith("(execution.task_timeout_minutes)")


def test_memory_of_a_real_process_is_held_to_its_limit(rig: Rig) -> None:
    rig.set(render=TaskType(argv=["x"], max_memory_gb=0.05))
    code = "hog = bytearray(80 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        rig.executor.task.memory = lambda enough: usage.memory([process.pid], enough)  # type: ignore[method-assign]

        async def story() -> None:
            await rig.do("task-claimed", *START)
            await until(lambda: rig.attempt._limit)
            assert rig.attempt.usage() is None, "it is gone"

        asyncio.run(story())
        process.kill()
    assert rig.attempt._limit == "limit: memory 0.1 GiB, limit 0.05 GiB (tasks.render.max_memory_gb)"


UNFIT = "the machine is not fit to work"
BLAMED = "limit: memory {} GiB leaves {} GiB of this machine's, 1 GiB required (host.min_memory_gb)"


@pytest.mark.parametrize(
    ("row", "before_gb", "left_gb", "own_gb", "fails"),
    [
        ("host-unfit", 16, 0.5, 15, BLAMED.format(15, 0.5)),
        ("cpu-taken", 16, 0.5, 15, BLAMED.format(15, 0.5)),  # kswapd is "others"
        ("host-unfit", 16, 0.5, 8, BLAMED.format(8, 0.5)),  # the most of it
        ("host-unfit", 16, 0.5, 7, ""),  # others took more
        ("host-unfit", 1.1, 0.5, 0.4, ""),  # without it the machine would be unfit as well
        ("host-unfit", 1.1, 0.5, 0.6, BLAMED.format(0.6, 0.5)),
        ("host-unfit", 16, 1, 15, ""),  # something else than memory
        ("host-unfit", 0.2, 0.8, 0.3, BLAMED.format(0.3, 0.8)),  # others gave some back meanwhile
        ("user-returned", 16, 0.5, 15, ""),
    ],
)
def test_a_task_that_fills_the_machines_memory_fails_and_does_not_go_on_to_fill_anothers(
    rig: Rig, row: str, before_gb: float, left_gb: float, own_gb: float, fails: str
) -> None:
    context = rig.attempts.context
    context.settings = replace(context.settings, min_memory_gb=1)
    context.available_gb = lambda: before_gb
    measured: list[float | None] = []

    def memory(enough: float | None) -> int:
        measured.append(enough)
        return int(own_gb * usage.GIB)

    async def story() -> None:
        await rig.do("task-claimed", *START)
        context.available_gb = lambda: left_gb
        rig.executor.task.memory = memory  # type: ignore[method-assign]
        await rig.do(row, *OUT)

    asyncio.run(story())
    (outcome,) = rig.source.outbox
    assert outcome == (("settled", ID, {}, fails) if fails else ("handed back", ID, HAND_BACK_REASONS[row], "resubmit"))
    assert not fails or any(enough is not None for enough in measured), "shared memory must not count twice"


def test_what_must_stay_available_is_the_hosts_setting(tmp_path: Path) -> None:
    (tmp_path / "runtime.yaml").write_text(runtime_yaml())
    (tmp_path / "node.yaml").write_text("host: {min_memory_gb: 3}\n")
    node = Node(load(tmp_path), CLOCK, lambda: None, lambda _: None, cast("Any", None), cast("Any", None))
    assert node.attempts.context.settings.min_memory_gb == 3
    assert 0 < node.attempts.context.available_gb() < psutil.virtual_memory().total / usage.GIB


def test_what_cannot_be_measured_is_not_held_against_the_task(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "MEMORY_S", 0.05)
    context = rig.attempts.context
    context.settings = replace(context.settings, min_memory_gb=1)
    never = threading.Event()

    def broken(enough: float | None) -> int:
        raise OSError(24, "Too many open files")

    def stuck(enough: float | None) -> int:
        never.wait(10)
        return 1 << 40

    async def story() -> None:
        for memory in (broken, stuck):
            rig.source.waiting, rig.executor.task = claim(), FreezableTask()
            context.available_gb = lambda: 16
            await rig.do("task-claimed", *START)
            context.available_gb = lambda: 0.5
            rig.executor.task.memory = memory  # type: ignore[method-assign]
            await rig.do("host-unfit", *OUT)
        never.set()

    asyncio.run(story())
    assert rig.source.outbox == [("handed back", ID, UNFIT, "resubmit")] * 2


def test_limits_that_are_none_limit_nothing_and_changes_hold_at_once(rig: Rig) -> None:
    rig.set(render=TaskType(argv=["x"], max_disk_gb=None, max_processes=None))
    rig.executor.task.pids = lambda: frozenset(range(2000, 6000))  # type: ignore[method-assign]

    async def story() -> None:
        await rig.do("task-claimed", *START)
        await until(lambda: (rig.attempt.usage() or {})["processes"] == 4000)
        await asyncio.sleep(0.1)
        assert rig.attempt._limit == ""
        rig.set(render=TaskType(argv=["x"], max_processes=3999))
        await until(lambda: rig.attempt._limit)

    asyncio.run(story())
    assert rig.attempt._limit == "limit: processes 4000, limit 3999 (tasks.render.max_processes)"


def test_a_look_that_fails_is_told_and_the_next_one_counts(rig: Rig) -> None:
    def broken() -> frozenset[int]:
        raise OSError(24, "Too many open files")

    rig.set(render=TaskType(argv=["x"], max_processes=1))
    rig.executor.task.pids = broken  # type: ignore[method-assign]

    async def story() -> None:
        await rig.do("task-claimed", *START)
        await until(lambda: rig.attempt.note)
        assert rig.attempt.note == "the task could not be watched: OSError: [Errno 24] Too many open files"
        rig.executor.task.pids = lambda: frozenset({1, 2})  # type: ignore[method-assign]
        await until(lambda: rig.attempt._limit)
        assert rig.attempt.note == ""

    asyncio.run(story())


# --- its own load


def test_a_task_that_cannot_be_frozen_says_so_and_runs_on(rig: Rig) -> None:
    rig.set(limits=Limits(max_gpu_percent=1))
    rig.executor.task = FreezableTask("cannot be frozen, only cut")
    rig.gpu.looks = [(Gpu(), TaskUse(1, 2.0, 80.0))]

    async def story() -> list[str]:
        await rig.do("task-claimed", *START)
        await until(lambda: rig.attempt.note)
        usage = rig.attempt.usage()
        assert usage is not None
        assert (usage["frozen"], usage["gpu_percent"], usage["vram_gb"]) == (False, 80.0, 2.0)
        note = rig.attempt.note
        rig.gpu.looks = [(Gpu(), FREE)]
        return [note, (await rig.do("user-returned", *OUT))[0]]

    note, said = asyncio.run(story())
    assert note == "the task's GPU use of 80 % cannot be held to 1 % (safety.max_gpu_percent): cannot be frozen, only cut"
    assert said.endswith(note)


def test_a_task_is_frozen_and_thawed_and_never_thawed_once_it_is_being_stopped(rig: Rig) -> None:
    task = rig.executor.task
    assert isinstance(task, FreezableTask)
    rig.set(limits=Limits(max_gpu_percent=1))
    rig.gpu.looks = [(Gpu(), TaskUse(1, 2.0, 80.0))]

    async def story() -> None:
        await rig.do("task-claimed", *START)
        await until(lambda: task.log == ["frozen"])
        rig.set(limits=Limits(max_gpu_percent=100))  # all may be used: it goes on
        await until(lambda: task.log == ["frozen", "thawed"])
        rig.set(limits=Limits(max_gpu_percent=1))
        await until(lambda: task.log[2:] == ["frozen"])
        rig.gpu.looks = [(Gpu(), FREE)]
        await rig.do("user-returned", *OUT)
        rig.set(limits=Limits(max_gpu_percent=100))
        await asyncio.sleep(0.1)

    asyncio.run(story())
    assert task.log == ["frozen", "thawed", "frozen"]
