"""What an attempt needs from its node: the clock, the GPU sensor, the settings in force, and how long a sleep waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import psutil

from states.limits import Limits
from states.observation import Gpu, Reading
from supervisor.config.schema import GpuSettings, TaskType
from supervisor.linux.clock import Clock
from supervisor.sensors.gpu.ownership import TaskUse

if TYPE_CHECKING:
    from supervisor.tasks.cuda_checkpoint import Checkpointer

# logind's own default for InhibitDelayMaxSec, for when logind does not say.
DELAY_MAX_S: Final = 5.0
# What the hand-back, the wipe and the release of the delay lock need after the task is gone.
SLEEP_MARGIN_S: Final = 1.0
# The last reading of the GPU before a sleep may come this long before logind's limit.
SLEEP_READ_MARGIN_S: Final = 0.5


class GpuSensor(Protocol):
    """What the GPU sensor reports."""

    @property
    def own(self) -> TaskUse:
        """What the node's own task does on the GPU, by the last look."""
        ...

    def latest(self, now_s: float) -> Reading[Gpu]:
        """The last look, and when it was."""
        ...

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """Look now, and wait for the answer."""
        ...


class SleepWatch(Protocol):
    """What logind says about a coming sleep or shutdown."""

    @property
    def going_down(self) -> str:
        """Why the machine is about to sleep or shut down; empty when it is not."""
        ...

    @property
    def delay_max_s(self) -> float | None:
        """How long logind waits for the delay lock, in seconds; None: not known."""
        ...

    @property
    def announced_s(self) -> float | None:
        """When logind began to wait, in seconds of CLOCK_BOOTTIME; None: it does not wait yet."""
        ...


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """The settings in force. Replaced as a whole when the configuration changes."""

    limits: Limits = field(default_factory=Limits)
    gpu: GpuSettings = field(default_factory=GpuSettings)
    types: Mapping[str, TaskType] = field(default_factory=dict)
    min_memory_gb: float = 0.0  # what must stay available of the machine's memory


def _checkpointer() -> Checkpointer:
    """The real one is imported late: it costs memory, and most nodes never need it."""
    from supervisor.tasks.cuda_checkpoint import Checkpointer

    return Checkpointer()


def available_gb() -> float:
    """GiB of memory that are available on this machine, as the host's guard counts them."""
    return float(psutil.virtual_memory().available) / (1 << 30)


@dataclass(slots=True)
class TaskContext:
    """The surroundings of an attempt. `make_checkpointer` is called once, for the first task that needs it."""

    clock: Clock
    gpu: GpuSensor
    sleep: SleepWatch
    settings: TaskSettings
    make_checkpointer: Callable[[], Checkpointer] = _checkpointer
    available_gb: Callable[[], float] = available_gb
    _checkpointer: Checkpointer | None = None

    def checkpointer(self) -> Checkpointer:
        """The one checkpointer of the node: its helper process serves one task after the other."""
        if self._checkpointer is None:
            self._checkpointer = self.make_checkpointer()
        return self._checkpointer

    @property
    def stop_limit_s(self) -> float:
        """Seconds from now that a stop may take before a sleep: what is left of logind's real limit (InhibitDelayMaxUSec),
        less a margin. 0: no time for anything but the kill."""
        return max(0.0, self._delay_left_s - SLEEP_MARGIN_S)

    @property
    def read_limit_s(self) -> float:
        """Seconds from now until the last reading of the GPU before a sleep."""
        return max(0.0, self._delay_left_s - SLEEP_READ_MARGIN_S)

    @property
    def _delay_left_s(self) -> float:
        """Of the time that logind waits. All of it before it begins to wait, as after a lid was closed."""
        most_s, began_s = self.sleep.delay_max_s, self.sleep.announced_s
        passed_s = 0.0 if began_s is None else self.clock.now_s() - began_s
        return (DELAY_MAX_S if most_s is None else most_s) - passed_s
