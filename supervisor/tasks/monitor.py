"""Watches the running task: what it uses, and that it stays within its own limits.

A task over one of its limits is stopped at once and fails: `limit: memory 5.1 GiB, limit 4 GiB (tasks.render.max_memory_gb)`.
So is one on a GPU that is not lent.
That says nothing about the node: to the table it is a task that failed.

A look comes once a second, sooner when a limit is near, and runs in a worker thread. The disk is walked less often, in a
walk of its own, which may take long. VRAM and GPU load come from the GPU sensor's last look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from states.formatting import number
from supervisor.config.schema import TaskType
from supervisor.tasks import usage
from supervisor.tasks.context import TaskContext
from supervisor.tasks.executors.base import FreezeFailed, RunningTask, StopFailed
from supervisor.tasks.pause import Pause
from supervisor.tasks.vram import VramCheck

FIRST_LOOK_S: Final = 0.1  # a task that is over a limit from the start is seen at once
LOOK_S: Final = 1.0
SOON_S: Final = 0.2  # where a limit would be passed within AHEAD_S at the present rate
AHEAD_S: Final = 3.0
SHORTEST_S: Final = 0.05
DISK_S: Final = 1.0
DISK_SHARE: Final = 20  # a walk is followed by this many times its own time without one


@dataclass(frozen=True, slots=True)
class Usage:
    """What the task uses now: GiB, and percent of the busiest GPU. None: not known yet, or not on a GPU."""

    processes: int = 0
    memory_gb: float = 0.0
    disk_gb: float | None = None
    vram_gb: float | None = None
    gpu_percent: float | None = None


class Monitor:
    """Watches one task from its start until `end`.

    Args:
        kind: the task's type.
        on_limit: called with the limit that the task passed, before the task is stopped.
    """

    def __init__(
        self,
        kind: str,
        process: RunningTask,
        context: TaskContext,
        pause: Pause,
        vram: VramCheck,
        on_limit: Callable[[str], None],
    ) -> None:
        self._kind, self._process = kind, process
        self._context, self._pause, self._vram, self._on_limit = context, pause, vram, on_limit
        self._must_stop = False
        self._error = ""
        self._looked_at_s = context.clock.now_s()
        self._walk_at_s = self._looked_at_s + LOOK_S
        self._walk: asyncio.Task[int] | None = None
        self._available_gb = context.available_gb()
        self.usage = Usage()
        self._watch = asyncio.get_running_loop().create_task(self._run())

    def end(self) -> None:
        """Watch no longer."""
        for job in (self._watch, self._walk):
            if job is not None:
                job.cancel()

    def stop_task(self) -> None:
        """Stop the task at the next look, and again until it is gone."""
        self._must_stop = True

    async def judge_memory(self) -> None:
        """The machine is not fit to work, and the task is to be stopped. It fails if it has filled the machine's memory:
        without it enough would be available, and most of what is gone since its start is its own."""
        least_gb, left_gb = self._context.settings.min_memory_gb, self._context.available_gb()
        if left_gb >= least_gb or not self._process.alive:
            return
        to_blame_gb = max(least_gb - left_gb, (self._available_gb - left_gb) / 2)
        own_gb = await asyncio.to_thread(self._process.memory, to_blame_gb * usage.GIB) / usage.GIB
        if own_gb >= to_blame_gb:
            rest = f"leaves {number(left_gb)} GiB of this machine's, {number(least_gb)} GiB required (host.min_memory_gb)"
            self._on_limit(f"limit: memory {number(own_gb)} GiB {rest}")

    @property
    def error(self) -> str:
        """Why the last look failed; empty when all is well."""
        return f"the task could not be watched: {self._error}" if self._error else ""

    def report(self) -> dict[str, Any]:
        """The task's use beside its limits, for `status`."""
        use, limits, task_type = self.usage, self._context.settings.limits, self._type
        return {
            "processes": use.processes,
            "max_processes": task_type.max_processes,
            "memory_gb": _rounded(use.memory_gb),
            "max_memory_gb": task_type.max_memory_gb,
            "disk_gb": _rounded(use.disk_gb),
            "max_disk_gb": task_type.max_disk_gb,
            "vram_gb": _rounded(use.vram_gb),
            "max_vram_gb": limits.max_vram_gb if task_type.max_vram_gb is None else task_type.max_vram_gb,
            "gpu_percent": _rounded(use.gpu_percent),
            "max_gpu_percent": limits.max_gpu_percent,
            "mean_gpu_percent": None if use.gpu_percent is None else _rounded(self._pause.mean_gpu_percent),
            "frozen": self._pause.frozen,
            "on_hold": self._pause.at_sign,
        }

    @property
    def _type(self) -> TaskType:
        return self._context.settings.types.get(self._kind, TaskType())

    async def _run(self) -> None:
        wait_s = FIRST_LOOK_S
        while self._process.alive:
            await asyncio.sleep(wait_s)
            try:
                wait_s = await self._look_and_act()
                self._error = ""
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the watch
                self._error, wait_s = f"{type(error).__name__}: {error}", LOOK_S

    async def _look_and_act(self) -> float:
        """Returns the seconds until the next look."""
        passed, near = await self._look()
        while (passed or self._must_stop) and self._process.alive:
            if passed:
                self._on_limit(f"limit: {passed}")
            with contextlib.suppress(FreezeFailed):
                await self._pause.move_out()
            with contextlib.suppress(StopFailed):
                await self._process.stop(0.0)
        return max(SHORTEST_S, min(SOON_S if near else LOOK_S, await self._pause.keep_quota()))

    async def _look(self) -> tuple[str, bool]:
        """The limit that the task has passed, in words (empty: none), and whether one is near."""
        task_type, limits = self._type, self._context.settings.limits
        enough = None if task_type.max_memory_gb is None else task_type.max_memory_gb * usage.GIB
        processes, memory = await asyncio.to_thread(_measure, self._process, enough)
        self._vram.notice()
        own, before, before_s = self._context.gpu.own, self.usage, self._looked_at_s
        self._looked_at_s = self._context.clock.now_s()
        ahead = AHEAD_S / max(0.01, self._looked_at_s - before_s)
        on_gpu = own.processes > 0
        self.usage = use = Usage(
            processes,
            memory / usage.GIB,
            self._disk_gb(task_type),
            own.vram_gb if on_gpu else None,
            own.percent if on_gpu else None,
        )
        if own.stray:
            return own.stray, True
        name = f"tasks.{self._kind}"
        disk_gb = use.disk_gb or 0.0
        vram_limit, vram_section = task_type.max_vram_gb, name
        if vram_limit is None:
            vram_limit, vram_section = limits.max_vram_gb, "safety"
        near = False
        for value, earlier, limit, what, unit, setting in (
            (use.memory_gb, before.memory_gb, task_type.max_memory_gb, "memory", " GiB", f"{name}.max_memory_gb"),
            (float(processes), before.processes, task_type.max_processes, "processes", "", f"{name}.max_processes"),
            (own.vram_gb, own.vram_gb, vram_limit, "VRAM", " GiB", f"{vram_section}.max_vram_gb"),
            (disk_gb, disk_gb, task_type.max_disk_gb, "disk", " GiB", f"{name}.max_disk_gb"),
        ):
            if limit is None:
                continue
            if value > limit:
                return f"{what} {_above(value, limit)}{unit}, limit {number(limit)}{unit} ({setting})", True
            near = near or (value > earlier and value + (value - earlier) * ahead > limit)
        return "", near

    def _disk_gb(self, task_type: TaskType) -> float | None:
        """The result of the last walk. Begins the next walk when it is due."""
        found = self.usage.disk_gb
        if self._walk is not None and self._walk.done():
            walk, self._walk = self._walk, None
            if not walk.cancelled() and walk.exception() is None:
                found = walk.result() / usage.GIB
        if self._walk is None and task_type.max_disk_gb is not None and self._context.clock.now_s() >= self._walk_at_s:
            self._walk = asyncio.get_running_loop().create_task(self._walk_disk())
        return found

    async def _walk_disk(self) -> int:
        began_s = self._context.clock.now_s()
        try:
            return await self._process.disk()
        finally:
            now_s = self._context.clock.now_s()
            self._walk_at_s = now_s + max(DISK_S, DISK_SHARE * (now_s - began_s))


def _measure(process: RunningTask, enough: float | None) -> tuple[int, int]:
    """(number of processes, bytes of memory) of a tree. Blocks."""
    return len(process.pids()), process.memory(enough)


def _above(value: float, limit: float) -> str:
    """A value above its limit, with enough digits to show that: `4.001`, not `4`."""
    for digits in (1, 2, 3, 4, 6):
        if round(value, digits) > limit:
            return f"{round(value, digits):.{digits}f}".rstrip("0").rstrip(".")
    return str(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
