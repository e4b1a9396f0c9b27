"""Reads the GPU after a task has ended, until the task's VRAM is free or known to be held."""

from __future__ import annotations

import asyncio
from typing import Final

from states.ending import VRAM_UNUSED, Vram, VramState
from states.observation import Gpu, Reading
from supervisor.sensors.gpu import ownership
from supervisor.tasks.context import TaskContext

PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2)  # between two readings; the last one repeats
LOOK_S: Final = 1.0  # the longest that one reading may take
LATE_S: Final = 1.0  # one more reading this long after VRAM_RELEASE_S: it reports the memory as held
LEAST_S: Final = 0.1  # the task is gone: one short reading harms nobody
SLEEP_S: Final = 1.0  # before a sleep there is no time for more


class VramCheck:
    """Remembers whether the task was on the GPU, and reads the GPU once the task has ended."""

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self.pending = False  # the task was on the GPU, and its memory was not seen to be free

    def notice(self) -> None:
        """Remember whether the task is on the GPU, by the last look."""
        self.pending = self.pending or self._context.gpu.own.processes > 0

    @property
    def limit_s(self) -> float:
        """The longest that `read` takes, in seconds."""
        return ownership.VRAM_RELEASE_S + LATE_S + LOOK_S

    async def read(self, since_s: float) -> Vram:
        """Read until the memory is free or known to be held. `since_s`: the start of the stop, seconds of CLOCK_BOOTTIME.

        Memory that is still held blocks the GPU guard from then on (`Gpu.held`). Before a sleep the reading is cut short.
        """
        if not self.pending:
            return VRAM_UNUSED
        self.pending = False
        context = self._context
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        wait_s = ownership.VRAM_RELEASE_S + LATE_S
        if context.sleep.going_down:
            wait_s = max(LEAST_S, min(SLEEP_S, wait_s, context.read_limit_s))
        pauses = iter(PAUSES_S)
        while True:
            asked_s = context.clock.now_s()
            reading = await context.gpu.refresh(max(0.05, min(LOOK_S, began_s + wait_s - loop.time())))
            after_s = context.clock.now_s() - since_s
            if (vram := self._judge(reading, asked_s, after_s)) is not None:
                return vram
            passed_s = loop.time() - began_s
            hurried = context.sleep.going_down and (passed_s >= SLEEP_S or context.read_limit_s <= 0)
            if passed_s >= wait_s or hurried:
                break
            await asyncio.sleep(next(pauses, PAUSES_S[-1]))
        if reading.value is None:
            return Vram(VramState.UNREADABLE, after_s, reading.error)
        return Vram(VramState.HELD, after_s, context.gpu.own.left or "no reading within this time")

    def _judge(self, reading: Reading[Gpu], asked_s: float, after_s: float) -> Vram | None:
        """The result of one reading; None: not known yet."""
        gpu, left = reading.value, self._context.gpu.own.left
        if gpu is None:
            if self._context.settings.gpu.presence == "required":
                return None
            return Vram(VramState.NOT_REQUIRED, after_s, reading.error)
        if reading.read_at_s < asked_s:
            return None
        if not gpu.present or not left:
            return Vram(VramState.FREE, after_s)
        return Vram(VramState.HELD, after_s, left) if gpu.held else None
