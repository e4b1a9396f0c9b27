"""Minds the running task: what it uses, that it stays within its own limits, and when its VRAM is free again (R4, R23).

A task over one of its limits is stopped at once, and fails by its own fault: `limit: memory 5.1 GiB, limit 4 GiB
(tasks.render.max_memory_gb)`. That decides nothing about the node: to the mind it is a task that failed.

At a sign that may be a false alarm it is put on hold, when the mind says so (`hold`).

Its own GPU use is held under `safety.max_gpu_percent`, as the mean of any minute, by freezing it for moments (`gpu_quota`).

Looks come once a second while a task runs, sooner while it nears a limit fast, and in a worker thread; the disk is walked
more rarely, in a walk of its own, which may take long. VRAM and the GPU's load are the GPU sensor's last look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from states.limits import Limits
from states.observation import Gpu, Reading
from states.words import number
from supervisor.config.schema import GpuSettings, TaskType
from supervisor.linux.clock import Clock
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.ownership import Own
from supervisor.tasks import usage
from supervisor.tasks.executors.base import FreezeFailed, RunningTask, StopFailed
from supervisor.tasks.gpu_quota import GpuQuota
from supervisor.tasks.pause import Hold

LOOK_S: Final = 1.0
SOON_S: Final = 0.2  # when a limit would be reached within AHEAD_S at the pace of late
AHEAD_S: Final = 3.0
DISK_S: Final = 1.0
DISK_SHARE: Final = 20  # a walk is followed by so many times its own time without one
TURN_LOOK_S: Final = 0.5  # what a look at the GPU may take before the task is frozen for its load
VRAM_REST_GB: Final = 0.25  # what a driver keeps for a process without VRAM of its own
VRAM_PAUSE_S: Final = (0.02, 0.05, 0.1, 0.2)  # between two looks at VRAM that is not free yet; the last one repeats
VRAM_LOOK_S: Final = 1.0  # what one look at it may take
VRAM_LATE_S: Final = 1.0  # after the time that it may take: one more look, which says that it is held
VRAM_SLEEP_S: Final = 1.0  # before a sleep there is no time to wait longer,
SLEEP_BY_S: Final = 4.5  # nor beyond so long after the order, for logind waits for five seconds (T26)


class GpuEye(Protocol):
    """What the GPU sensor tells."""

    @property
    def own(self) -> Own:
        """What our task does there, by the last look."""
        ...

    def latest(self, now_s: float) -> Reading[Gpu]:
        """The last look, and when it was."""
        ...

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """Look now, and wait for the answer."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What the task uses now: GiB, percent of the busiest GPU; None: not known (yet), or no GPU."""

    processes: int = 0
    memory_gb: float = 0.0
    disk_gb: float | None = None
    vram_gb: float | None = None
    gpu_percent: float | None = None


@dataclass(slots=True)
class _Minded:
    """The task that is minded."""

    kind: str
    tree: RunningTask
    workdir: Path
    condemn: Callable[[str], None]
    spoil: Callable[[str], None]


class Minder:
    """Minds one task at a time, from its start until its VRAM is free.

    Args:
        clock: the clock.
        gpu: the GPU sensor of now.
        limits, gpu_settings, task_types: what is in force now.
        going_down: the machine is about to sleep or shut down.
    """

    def __init__(
        self,
        clock: Clock,
        gpu: Callable[[], GpuEye],
        limits: Callable[[], Limits],
        gpu_settings: Callable[[], GpuSettings],
        task_types: Callable[[], Mapping[str, TaskType]],
        going_down: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock = clock
        self._gpu = gpu
        self._limits, self._gpu_settings, self._task_types = limits, gpu_settings, task_types
        self._going_down = going_down
        self._task: _Minded | None = None
        self._watch: asyncio.Task[None] | None = None
        self._walk: asyncio.Task[int] | None = None
        self._walk_at_s = self._looked_at_s = 0.0
        self._on_gpu = False
        self._quota: GpuQuota | None = None
        self._unheld = self._trouble = self._spoilt = ""
        self._turning = asyncio.Lock()  # freezing and thawing, by whomever
        self.hold = Hold(lambda: self._gpu().own)
        self.usage = Usage()

    def begin(
        self,
        kind: str,
        tree: RunningTask,
        workdir: Path,
        condemn: Callable[[str], None],
        spoil: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Mind a task that has just started; `condemn` is told the limit that it is over, `spoil` why the node cannot let it go
        on, before it is stopped."""
        self.end()
        self._task = _Minded(kind, tree, workdir, condemn, spoil)
        self._on_gpu, self.usage = False, Usage()
        self._unheld = self._trouble = self._spoilt = ""
        wanted = self._task_types().get(kind, TaskType()).checkpoint
        self.hold.begin(tree, wanted if self._limits().hold_of(kind) > 0 else "none")
        self._quota = GpuQuota(self._limits().max_gpu_percent, self._clock.now_s())
        self._looked_at_s = self._clock.now_s()
        self._walk_at_s = self._looked_at_s + LOOK_S
        self._watch = asyncio.get_running_loop().create_task(self._mind(self._task))

    def end(self) -> None:
        """Nothing is to be minded any more; what it has left of VRAM is still read by `vram_freed`."""
        for job in (self._watch, self._walk):
            if job is not None:
                job.cancel()
        if self.hold.out and self._task is not None:
            self._task.spoil("it ended while its VRAM was moved out of the way")
        self._watch = self._walk = self._task = None
        self.hold.end()

    def words(self) -> dict[str, Any] | None:
        """For `status`: the task's use beside its limits; None while none is minded."""
        if self._task is None or not self._task.tree.alive:
            return None
        use, limits = self.usage, self._limits()
        kind = self._task_types().get(self._task.kind, TaskType())
        return {
            "processes": use.processes,
            "max_processes": kind.max_processes,
            "memory_gb": _rounded(use.memory_gb),
            "max_memory_gb": kind.max_memory_gb,
            "disk_gb": _rounded(use.disk_gb),
            "max_disk_gb": kind.max_disk_gb,
            "vram_gb": _rounded(use.vram_gb),
            "max_vram_gb": limits.max_vram_gb if kind.max_vram_gb is None else kind.max_vram_gb,
            "gpu_percent": _rounded(use.gpu_percent),
            "max_gpu_percent": limits.max_gpu_percent,
            "mean_gpu_percent": _rounded(self._quota.mean()) if self._quota and use.gpu_percent is not None else None,
            "frozen": self.hold.held or (self._quota is not None and self._quota.frozen),
            "on_hold": self.hold.held,
        }

    def note(self) -> str:
        """How the task's GPU use is held down, in words, or what is wrong; nothing where nothing needs to be said."""
        quota = self._quota
        if self._trouble:
            return f"the task could not be looked after: {self._trouble}"
        if quota is None or not (quota.rested_s or self._unheld):
            return self.hold.why_pinned
        limit = f"{number(self._limits().max_gpu_percent)} % (safety.max_gpu_percent)"
        if self._unheld:
            return f"the task's GPU use of {number(quota.load)} % cannot be held to {limit}: {self._unheld}"
        paused = f"paused for {quota.rested_s:.0f} s in all"
        return f"the task's GPU use is held to {limit}: {quota.mean():.0f} % in the last minute, {paused}"

    # --- the limits

    async def _mind(self, task: _Minded) -> None:
        wait_s = 0.1  # a task that is over a limit at once is seen at once
        while task.tree.alive:
            await asyncio.sleep(wait_s)
            try:
                wait_s = await self._mind_once(task)
                self._trouble = ""
            except Exception as error:  # noqa: BLE001 - no fault of ours may end the watch: it is told, and tried again
                self._trouble, wait_s = f"{type(error).__name__}: {error}", LOOK_S

    async def _mind_once(self, task: _Minded) -> float:
        """Look, and do what follows; returns seconds until the next look."""
        fault, near = await self._look(task)
        while (fault or self._spoilt) and task.tree.alive:
            if not self._spoilt:
                task.condemn(f"limit: {fault}")
            await self.hold.before_stop()
            with contextlib.suppress(StopFailed):  # and again, until it is gone
                await task.tree.stop(0.0)
        return min(SOON_S if near else LOOK_S, await self._pace(task))

    async def _look(self, task: _Minded) -> tuple[str, bool]:
        """The limit that the task is over, in words, and whether it nears one fast."""
        kind, limits = self._task_types().get(task.kind, TaskType()), self._limits()
        enough = None if kind.max_memory_gb is None else kind.max_memory_gb * usage.GIB
        processes, used = await asyncio.to_thread(_measure, task.tree, enough)
        own, before, before_s = self._gpu().own, self.usage, self._looked_at_s
        self._on_gpu, self._looked_at_s = self._on_gpu or own.processes > 0, self._clock.now_s()
        ahead = AHEAD_S / max(0.01, self._looked_at_s - before_s)
        self.usage = Usage(
            processes,
            used / usage.GIB,
            self._disk_gb(task, kind),
            own.vram_gb if own.processes else None,
            own.percent if own.processes else None,
        )
        name = f"tasks.{task.kind}"
        vram = (limits.max_vram_gb, "safety") if kind.max_vram_gb is None else (kind.max_vram_gb, name)
        shares = [
            (self.usage.memory_gb, before.memory_gb, kind.max_memory_gb, "memory", " GiB", f"{name}.max_memory_gb"),
            (float(processes), before.processes, kind.max_processes, "processes", "", f"{name}.max_processes"),
            (own.vram_gb, own.vram_gb, vram[0], "VRAM", " GiB", f"{vram[1]}.max_vram_gb"),
            (self.usage.disk_gb or 0.0, self.usage.disk_gb or 0.0, kind.max_disk_gb, "disk", " GiB", f"{name}.max_disk_gb"),
        ]
        near = False
        for value, earlier, limit, what, unit, setting in shares:
            if limit is not None and value > limit:
                return f"{what} {_over(value, limit)}{unit}, limit {number(limit)}{unit} ({setting})", True
            near = near or (limit is not None and value + (value - earlier) * ahead > limit and value > earlier)
        return "", near

    def _disk_gb(self, task: _Minded, kind: TaskType) -> float | None:
        """The last walk's finding; begins the next one when it is time."""
        found = self.usage.disk_gb
        if self._walk is not None and self._walk.done():
            walk, self._walk = self._walk, None
            if not walk.cancelled() and walk.exception() is None:
                found = walk.result() / usage.GIB
        if self._walk is None and kind.max_disk_gb is not None and self._clock.now_s() >= self._walk_at_s:
            self._walk = asyncio.get_running_loop().create_task(self._walk_disk(task))
        return found

    async def _walk_disk(self, task: _Minded) -> int:
        began_s = self._clock.now_s()
        try:
            return await asyncio.to_thread(lambda: usage.disk(task.workdir, task.tree.pids()))
        finally:
            now_s = self._clock.now_s()
            self._walk_at_s = now_s + max(DISK_S, DISK_SHARE * (now_s - began_s))

    async def _pace(self, task: _Minded) -> float:
        """Freeze or thaw the task when its GPU use asks for it; returns seconds until that may be so again."""
        quota, gpu = self._quota, self._gpu()
        assert quota is not None
        quota.limit = self._limits().max_gpu_percent
        quota.advance(self._clock.now_s())
        self._read_load(quota)
        if quota.due and not quota.frozen:  # by its load of this moment
            await gpu.refresh(TURN_LOOK_S)
            self._read_load(quota)
        if not quota.due or not task.tree.alive:
            return max(0.05, quota.wait_s())
        async with self._turning:
            if self.hold.held:
                return LOOK_S
            try:
                await (task.tree.thaw() if quota.frozen else task.tree.freeze())
            except FreezeFailed as failed:
                self._unheld = str(failed)
                return LOOK_S
            self._unheld = ""
            quota.turn(self._clock.now_s(), frozen=not quota.frozen)
            return max(0.05, quota.wait_s())

    def _read_load(self, quota: GpuQuota) -> None:
        reading, own = self._gpu().latest(self._clock.now_s()), self._gpu().own
        if reading.value is not None:
            quota.read(own.percent if own.processes else 0.0, reading.read_at_s)

    # --- on hold

    @property
    def pinned(self) -> bool:
        """A task that may be put on hold is on the GPU, and would keep there what it holds."""
        task = self._task
        return task is not None and self._limits().hold_of(task.kind) > 0 and self.hold.pinned

    async def take(self) -> str:
        """Put the task on hold; in words. Raises FreezeFailed: it runs on, or cannot: stop it."""
        async with self._turning:
            quota = self._quota
            if quota is not None and quota.frozen and self._task is not None:  # a lock on a frozen process hangs (T22)
                await self._task.tree.thaw()
                quota.turn(self._clock.now_s(), frozen=False)
            self.look_back()
            words = await self.hold.take()
            if self.hold.out:
                words += await self._seen_out()
            if quota is not None:
                quota.pause(self._clock.now_s())
            return words

    async def _seen_out(self) -> str:
        """Whether NVML agrees that its VRAM is out of the way. Raises FreezeFailed: it does not."""
        gpu = self._gpu()
        asked_s = self._clock.now_s()
        reading = await gpu.refresh(TURN_LOOK_S)
        if reading.value is None or reading.read_at_s < asked_s:
            raise FreezeFailed(f"whether its VRAM is out of the way cannot be seen: {reading.error or 'no answer in time'}")
        if gpu.own.vram_gb > VRAM_REST_GB:
            raise FreezeFailed(f"{number(round(gpu.own.vram_gb, 2))} GiB of its VRAM are still there")
        return ""

    async def let_go(self) -> str:
        """It goes on; in words. One that does not is stopped as soon as the minder looks. Raises FreezeFailed."""
        async with self._turning:
            try:
                words = await self.hold.let_go()
            except FreezeFailed as failed:
                self._spoilt = f"it could not go on after a hold: {failed}"
                if self._task is not None:
                    self._task.spoil(self._spoilt)
                raise
            if self._quota is not None:
                self._quota.turn(self._clock.now_s(), frozen=False)
            return words

    # --- VRAM after the end

    def look_back(self) -> None:
        """The task is about to be stopped: remember whether it is on the GPU."""
        self._on_gpu = self._on_gpu or self._gpu().own.processes > 0

    @property
    def unread(self) -> bool:
        """The last task was on the GPU, and it was not seen yet that its VRAM is free."""
        return self._on_gpu

    @property
    def vram_limit_s(self) -> float:
        """The most that `vram_freed` takes, seconds."""
        return ownership.VRAM_RELEASE_S + VRAM_LATE_S + VRAM_LOOK_S

    async def vram_freed(self, since_s: float, *, hurry: bool = False) -> str:
        """Read VRAM until the task's is gone; says when, in words, counted from `since_s` (seconds of CLOCK_BOOTTIME), or
        that it is still held, which the GPU's reading says from then on. Nothing for a task that was not on the GPU.

        Args:
            since_s: what the time is counted from.
            hurry: the machine is about to sleep.
        """
        if not self._on_gpu:
            return ""
        self._on_gpu = False
        wait_s = ownership.VRAM_RELEASE_S + VRAM_LATE_S
        if hurry:
            wait_s = max(0.1, min(VRAM_SLEEP_S, wait_s, SLEEP_BY_S - (self._clock.now_s() - since_s)))
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        until_s = began_s + wait_s
        pauses = iter(VRAM_PAUSE_S)
        reading: Reading[Gpu] = Reading()
        while True:
            asked_s = self._clock.now_s()
            reading = await self._gpu().refresh(max(0.05, min(VRAM_LOOK_S, until_s - loop.time())))
            took_ms = (self._clock.now_s() - since_s) * 1000
            gpu, left = reading.value, self._gpu().own.left
            if gpu is not None and reading.read_at_s >= asked_s:
                if not gpu.present or not left:
                    return f"VRAM free after {took_ms:.0f} ms"
                if gpu.held:
                    break
            elif gpu is None and self._gpu_settings().presence != "required":
                return f"VRAM not readable ({reading.error}), and gpu.presence asks for no GPU"
            if loop.time() >= until_s or (self._going_down() and loop.time() - began_s >= VRAM_SLEEP_S):
                break
            await asyncio.sleep(next(pauses, VRAM_PAUSE_S[-1]))
        if reading.value is None:
            return f"VRAM not readable: {reading.error}"
        return f"VRAM still held after {took_ms:.0f} ms: {self._gpu().own.left or 'no look at it within this time'}"


def _measure(tree: RunningTask, enough: float | None) -> tuple[int, int]:
    """(number of processes, bytes of memory) of a tree. Blocks."""
    pids = tree.pids()
    return len(pids), usage.memory(pids, enough)


def _over(value: float, limit: float) -> str:
    """A value that is more than its limit, so that rounding does not make them alike: `4.001`, not `4`."""
    for digits in (1, 2, 3, 4, 6):
        if round(value, digits) > limit:
            return f"{round(value, digits):.{digits}f}".rstrip("0").rstrip(".")
    return str(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
