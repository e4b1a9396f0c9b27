"""Freezes the running task and lets it go on: at a sign that may be a false alarm, and to keep its GPU quota.

A frozen task uses no processor, but it keeps what it holds on the GPU. So a task on the GPU is frozen at a sign only where
its VRAM can be moved out first (`checkpoint: cuda`). The order is then: move out, freeze; later thaw, move back. Each pair
runs without a gap: a process that uses its GPU in between may crash. The table decides when (rows on-hold, false-alarm);
what fails here makes it stop the task at the next tick.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from states.formatting import number
from supervisor.tasks.context import TaskContext
from supervisor.tasks.executors.base import CheckpointFailed, FreezeFailed, Rung, RunningTask
from supervisor.tasks.gpu_quota import GpuQuota
from supervisor.tasks.process.unit import UnitTask

if TYPE_CHECKING:
    from supervisor.tasks.cuda_checkpoint import Checkpointer

CHECKPOINT_S: Final = 3.0  # the longest that moving VRAM out or back may take
REFRESH_S: Final = 0.5  # the longest that a reading of the GPU may take before the task is frozen
VRAM_REST_GB: Final = 0.25  # what a driver keeps for a process without VRAM of its own
RETRY_S: Final = 1.0  # until the quota is looked at again after a freeze that failed


class Pause:
    """Freezes and thaws one task. Made when the task starts.

    Args:
        checkpointer: moves its VRAM out; None: its type does not ask for that.
    """

    def __init__(self, process: RunningTask, context: TaskContext, checkpointer: Checkpointer | None) -> None:
        self._process, self._context, self._checkpointer = process, context, checkpointer
        self._quota = GpuQuota(context.settings.limits.max_gpu_percent, context.clock.now_s())
        self._lock = asyncio.Lock()  # one freeze or thaw at a time
        self._quota_error = ""
        self._broken = False  # its VRAM is in an unknown state
        self.at_sign = False  # frozen because of a sign
        self.vram_out = False
        self._begin: asyncio.Task[None] | None = None
        if checkpointer is not None:
            begin = checkpointer.begin(start=process.start_helper) if isinstance(process, UnitTask) else checkpointer.begin()
            self._begin = asyncio.get_running_loop().create_task(begin)

    def end(self) -> None:
        """The task is over."""
        if self._begin is not None:
            self._begin.cancel()
            self._begin = None
        if self._checkpointer is not None:
            self._checkpointer.end()
            self._checkpointer = None

    # --- at a sign

    @property
    def on_gpu(self) -> bool:
        """The task uses the GPU, by the last look."""
        return self._context.gpu.own.processes > 0

    @property
    def pinned(self) -> bool:
        """The task is on the GPU, and its VRAM cannot be moved out: freezing it would keep the VRAM in use."""
        movable = self._checkpointer is not None and not self._checkpointer.problem
        return self.on_gpu and not movable

    @property
    def frozen(self) -> bool:
        """The task stands still, at a sign or for its quota."""
        return self.at_sign or self._quota.frozen

    @property
    def skips_grace(self) -> bool:
        """SIGTERM would be useless: the task waits for VRAM that it will not get back."""
        return self.vram_out or self._broken

    @property
    def must_move_out(self) -> bool:
        """The task got its VRAM back after a checkpoint. It must not end with it (see Checkpointer.restored), so a stop has
        to move it out before anything is frozen."""
        checkpointer = self._checkpointer
        return checkpointer is not None and checkpointer.restored and not self.skips_grace and self._process.alive

    async def freeze(self) -> tuple[Rung, ...]:
        """Freeze the task, its VRAM out of the way.

        Raises:
            FreezeFailed: it runs on, or is in an unknown state: it must be stopped.
        """
        async with self._lock:
            if self._quota.frozen:  # a checkpoint lock on a frozen process hangs
                await self._process.thaw()
                self._quota.turn(self._context.clock.now_s(), frozen=False)
            rungs: tuple[Rung, ...] = ()
            if self.on_gpu:
                rungs = await self._move_out(CHECKPOINT_S)
            self.at_sign = True
            try:
                rungs = (*rungs, await self._process.freeze())
            except FreezeFailed:
                self.at_sign = False
                raise
            if self.vram_out:
                await self._confirm_out()
            self._quota.pause(self._context.clock.now_s())
            return rungs

    async def thaw(self) -> tuple[Rung, ...]:
        """Let the task go on where it was.

        Raises:
            FreezeFailed: it does not go on, and must be stopped.
        """
        async with self._lock:
            rungs: tuple[Rung, ...] = (await self._process.thaw(),)
            if self.vram_out:
                assert self._checkpointer is not None
                try:
                    rungs = (*rungs, *await self._checkpointer.back(self._process.pids(), CHECKPOINT_S))
                except CheckpointFailed as failed:
                    self._broken = True
                    raise FreezeFailed(f"its VRAM could not be given back: {failed}") from None
            self.at_sign = self.vram_out = False
            self._quota.turn(self._context.clock.now_s(), frozen=False)
            return rungs

    async def move_out(self, limit_s: float = CHECKPOINT_S) -> tuple[Rung, ...]:
        """Before a stop: move the VRAM out, if it must be (`must_move_out`).

        Raises:
            FreezeFailed: it could not be moved.
        """
        return await self._move_out(limit_s) if self.must_move_out else ()

    async def _move_out(self, limit_s: float) -> tuple[Rung, ...]:
        if self._checkpointer is None:
            raise FreezeFailed("it is on the GPU, and frozen would keep its VRAM (tasks.<type>.checkpoint)")
        try:
            rungs = await self._checkpointer.out(self._process.pids(), limit_s, self._context.gpu.own.vram_gb)
        except CheckpointFailed as failed:
            self._broken = not failed.usable
            raise FreezeFailed(f"its VRAM could not be moved out: {failed}") from None
        self.vram_out = True
        return tuple(rungs)

    async def _confirm_out(self) -> None:
        """NVML must agree that the VRAM is out of the way.

        Raises:
            FreezeFailed: it does not, or does not answer.
        """
        gpu, asked_s = self._context.gpu, self._context.clock.now_s()
        reading = await gpu.refresh(REFRESH_S)
        if reading.value is None or reading.read_at_s < asked_s:
            raise FreezeFailed(f"whether its VRAM is out of the way cannot be seen: {reading.error or 'no answer in time'}")
        if gpu.own.vram_gb > VRAM_REST_GB:
            raise FreezeFailed(f"{number(round(gpu.own.vram_gb, 2))} GiB of its VRAM are still there")

    # --- the GPU quota

    async def keep_quota(self) -> float:
        """Freeze or thaw the task if its GPU use asks for it. Returns the seconds until that may be so again."""
        quota, gpu, clock = self._quota, self._context.gpu, self._context.clock
        quota.limit = self._context.settings.limits.max_gpu_percent
        quota.advance(clock.now_s())
        self._read_load()
        if quota.due and not quota.frozen:  # decided by the load of this moment
            await gpu.refresh(REFRESH_S)
            self._read_load()
        if not quota.due or not self._process.alive:
            return quota.wait_s()
        async with self._lock:
            if self.at_sign:
                return RETRY_S
            try:
                await (self._process.thaw() if quota.frozen else self._process.freeze())
            except FreezeFailed as failed:
                self._quota_error = str(failed)
                return RETRY_S
            self._quota_error = ""
            quota.turn(clock.now_s(), frozen=not quota.frozen)
            return quota.wait_s()

    def _read_load(self) -> None:
        reading, own = self._context.gpu.latest(self._context.clock.now_s()), self._context.gpu.own
        if reading.value is not None:
            self._quota.read(own.percent if own.processes else 0.0, reading.read_at_s)

    @property
    def mean_gpu_percent(self) -> float:
        """The task's mean GPU use over the last minute."""
        return self._quota.mean()

    @property
    def note(self) -> str:
        """What the operator should know: how the quota is kept, or why a checkpoint cannot be made. Usually empty."""
        quota = self._quota
        if not (quota.rested_s or self._quota_error):
            problem = "" if self._checkpointer is None else self._checkpointer.problem
            return f"a task on the GPU is stopped, not held: {problem}" if problem else ""
        limit = f"{number(self._context.settings.limits.max_gpu_percent)} % (safety.max_gpu_percent)"
        if self._quota_error:
            return f"the task's GPU use of {number(quota.load)} % cannot be held to {limit}: {self._quota_error}"
        paused = f"paused for {quota.rested_s:.0f} s in all"
        return f"the task's GPU use is held to {limit}: {quota.mean():.0f} % in the last minute, {paused}"
