"""What the tests of the GPU sensors share: the loop, waiting, readings, and which helpers run."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import pytest
from support.waiting import eventually

from states.observation import Gpu, Reading
from supervisor.config.schema import GpuSettings
from supervisor.linux.clock import SystemClock
from supervisor.sensors.base import Wake
from supervisor.sensors.gpu import poller
from supervisor.sensors.gpu.nvml import NvmlSensor
from supervisor.sensors.gpu.poller import Setup

CLOCK = SystemClock()


class Sensor(Protocol):
    """A sensor of one kind of GPU, or of all."""

    async def start(self, wake: Wake) -> None: ...

    async def stop(self) -> None: ...

    def latest(self, now_s: float) -> Reading[Gpu]: ...


S = TypeVar("S", bound=Sensor)


class Machine:
    """Roots of a made-up machine's sysfs, /proc and /dev, the node's own pids, and a count of wakes."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.proc, self.dev = folder / "sys", folder / "proc", folder / "dev"
        for made in (self.sys / "bus/pci/devices", self.proc, self.dev):
            made.mkdir(parents=True)
        self.own: frozenset[int] = frozenset()
        self.wakes = 0

    def setup(self, settings: GpuSettings | None = None, **more: Any) -> Setup:
        """What a sensor of this machine is made with."""
        roots = {"sys_root": self.sys, "proc_root": self.proc, "dev_root": self.dev}
        return Setup(CLOCK, settings or GpuSettings(), lambda: self.own, **(roots | more))

    @contextlib.asynccontextmanager
    async def watched(self, sensor: S) -> AsyncIterator[S]:
        """The sensor started, stopped in the end, and no process left behind."""
        await sensor.start(self._wake)
        try:
            yield sensor
        finally:
            await sensor.stop()
            await until(lambda: helpers() == [])  # what was killed takes a moment to die

    def _wake(self) -> None:
        self.wakes += 1


class NvidiaMachine(Machine):
    """One whose processes are the real ones, and whose NVML is the stand-in."""

    def pci(self, status: str = "active", control: str = "on", driver: str = "nvidia", kind: str = "0x030000") -> None:
        """An NVIDIA device on the bus."""
        device = self.sys / "bus/pci/devices/0000:01:00.0"
        (device / "power").mkdir(parents=True, exist_ok=True)
        drivers = self.sys / "bus/pci/drivers" / driver
        drivers.mkdir(parents=True, exist_ok=True)
        (device / "driver").unlink(missing_ok=True)
        (device / "driver").symlink_to(drivers)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text(f"{kind}\n")
        (device / "power/control").write_text(f"{control}\n")
        (device / "power/runtime_status").write_text(f"{status}\n")

    def sensor(
        self, settings: GpuSettings | None = None, **more: Any
    ) -> contextlib.AbstractAsyncContextManager[NvmlSensor]:
        """A started sensor."""
        return self.watched(NvmlSensor(self.setup(settings, **({"proc_root": Path("/proc"), "settle_s": 0.02} | more))))


@pytest.fixture
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure the next try comes soon."""
    monkeypatch.setattr(poller, "BACKOFF_S", (0.1,))


@pytest.fixture
def nvidia(tmp_path: Path) -> NvidiaMachine:
    """A machine of this test's own."""
    return NvidiaMachine(tmp_path / "machine")


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that is nobody's we know."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def helpers() -> list[psutil.Process]:
    """The GPU helpers of this process that run."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            ours = {"supervisor.sensors.gpu.nvml_helper", "supervisor.sensors.gpu.drm_helper"} & set(child.cmdline())
            if ours and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def now(sensor: Sensor) -> Reading[Gpu]:
    """Its reading now."""
    return sensor.latest(CLOCK.now_s())


async def until(condition: Callable[[], object], within_s: float = 15.0) -> None:
    """Wait until the condition is true, for less time than until a look without a demand, which comes after 25 s."""
    await eventually(condition, timeout_s=within_s)
