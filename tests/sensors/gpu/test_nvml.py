"""The NVML sensor with the real pynvml over the stand-in library: what it reads, and every way in which it cannot."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.gpu_rig import CLOCK, NvidiaMachine, helpers, now, nvidia, soon_again, stranger, until
from support.nvml_standin import GIB, StandIn, nvml_library, standin
from support.waiting import play

from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.sensors.gpu.nvml import NvmlSensor

__all__ = ["nvidia", "nvml_library", "soon_again", "standin", "stranger"]  # fixtures

pytestmark = pytest.mark.usefixtures("soon_again")


def test_a_quiet_gpu_is_free_and_wakes_nobody_again(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """One reading, one wake; further looks that show the same wake nobody."""

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            reading = now(sensor)
            assert (Gpu(), "", "NVML") == (reading.value, reading.error, reading.source)
            assert 0 <= CLOCK.now_s() - reading.read_at_s < 20
            sensor.demand(0.2)
            await until(lambda: now(sensor).read_at_s > reading.read_at_s + 0.5)
            assert nvidia.wakes == 1

    play(scene())


@pytest.mark.parametrize(("percent", "believed"), [(0, True), (10, True), (11, False), (20, False)])
def test_a_first_sample_that_shows_a_load_is_discarded(
    standin: StandIn, nvidia: NvidiaMachine, percent: int, believed: bool
) -> None:
    """A driver that was just loaded shows 90 percent and more (T14); what is low cannot be that, and answers at once."""
    standin.shows(f"0.util={percent}")

    async def scene() -> None:
        async with nvidia.sensor(settle_s=60.0) as sensor:
            assert (now(sensor).value is not None) is believed
            if not believed:
                for _ in range(3):  # the fourth counts, when a driver was loaded for the first
                    sensor._look()
                    await until(lambda: not sensor._busy)
            assert now(sensor).value == Gpu(percent)

    play(scene())


def test_who_is_on_it(standin: StandIn, nvidia: NvidiaMachine, stranger: subprocess.Popen[bytes]) -> None:
    """Others by name and pid; the task's own neither counted nor weighed; rows for doctor."""
    nvidia.own = frozenset({os.getpid()})
    standin.shows(
        f"0.proc={os.getpid()}:{5 * GIB}:c", f"0.proc={stranger.pid}:{GIB}:g", f"0.mem_used={7 * GIB}", "0.util=80",
        "0.mem_reserved=300000000", "0.temp=61",
    )  # fmt: skip

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            reading = now(sensor)
            assert Gpu(80, 2.0, 1, True, (f"sleep (pid {stranger.pid})",)) == reading.value
            assert "1 GiB of VRAM held by no listed process" in reading.source
            (row,) = sensor.describe()
            assert (
                row["uuid"], row["used_gb"], row["temperature_c"], row["driver"],
            ) == ("GPU-fake-0", 7.0, 61, "580.00.00")  # fmt: skip
            assert {("own", 5.0), ("foreign", 1.0)} == {(p["whose"], p["used_gb"]) for p in row["processes"]}

    play(scene())


def test_a_task_that_has_just_ended_is_no_stranger(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """The driver lists it a moment longer: its memory counts, but nobody is there."""
    task = subprocess.Popen(["sleep", "60"])
    nvidia.own = frozenset({task.pid})
    standin.shows(f"0.proc={task.pid}:{5 * GIB}:c", f"0.mem_used={5 * GIB}", "0.util=90")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert now(sensor).value == Gpu(0, 0, 0)
            task.kill()
            task.wait()
            nvidia.own = frozenset()
            reading = await sensor.refresh(3)
            assert reading.value == Gpu(90, 5.0, 0)

    play(scene())


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        pytest.param(["0.err=15"], "the GPU is lost", id="lost"),
        pytest.param(["err.nvmlInit=9"], "the NVIDIA driver is not loaded", id="driver not loaded"),
        pytest.param(["err.nvmlInit=18"], "of different versions (an update was installed): reboot", id="mismatch"),
        pytest.param(["err.nvmlInit=4"], "no permission", id="no permission"),
        pytest.param(["err.nvmlDeviceGetCount=999"], "unknown error (NVML error 999)", id="unknown error"),
        pytest.param(["err.nvmlDeviceGetUUID=15"], "its UUID cannot be read", id="no UUID"),
        pytest.param(["err.nvmlDeviceGetMemoryInfo=999"], "its memory cannot be read: the NVIDIA", id="no memory"),
        pytest.param(["0.util=97"], "97 % load on GPU-fake-0, by no listed process", id="used by nobody"),
        pytest.param(["err.nvmlDeviceGetGraphicsRunningProcesses=3"], "its processes cannot be listed", id="no processes"),
        pytest.param(["err.nvmlDeviceGetUtilizationRates=3"], "its utilisation cannot be read: not", id="no utilisation"),
        pytest.param(["0.mig=1", "err.nvmlDeviceGetUtilizationRates=3"], "read while MIG is on", id="MIG"),
        pytest.param(["0.util=255"], "impossible utilisation (255 %)", id="impossible utilisation"),
        pytest.param(["0.mem_used=99999999999999"], "impossible memory", id="impossible memory"),
    ],
)
def test_what_nvml_cannot_say_is_unknown_with_the_reason(
    standin: StandIn, nvidia: NvidiaMachine, lines: list[str], text: str
) -> None:
    """Each error by its name, as text; when it is over, the reading comes back by itself (R12)."""
    standin.shows(*lines)

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert now(sensor).value is None
            assert text in now(sensor).error
            standin.shows()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_an_old_driver_without_the_second_memory_call(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """The first form is asked then; what the driver reserves is unknown."""
    standin.shows("err.nvmlDeviceGetMemoryInfo_v2=25", f"0.mem_used={GIB}")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert now(sensor).value == Gpu(0, 1.0, 0)
            assert sensor.describe()[0]["reserved_gb"] is None

    play(scene())


@pytest.mark.parametrize("lines", [["err.nvmlDeviceGetMemoryInfo=3"], ["0.mem_total=0"]])
def test_a_gpu_with_the_systems_memory(
    standin: StandIn, nvidia: NvidiaMachine, stranger: subprocess.Popen[bytes], lines: list[str]
) -> None:
    """NVML supports neither form of the memory call, or reports nothing; all else is as ever."""
    standin.shows(*lines, f"0.proc={stranger.pid}:{GIB}:c", "0.util=70")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert now(sensor).value == Gpu(70, 1.0, 1, True, (f"sleep (pid {stranger.pid})",))
            assert now(sensor).source == "NVML (no VRAM of its own: the system's memory counts)"
            standin.shows(*lines)
            assert (await sensor.refresh(3)).value == Gpu()
            (row,) = sensor.describe()
            assert (row["total_gb"], row["used_gb"]) == (None, 0.0)

    play(scene())


def test_no_gpu_and_no_library_is_absent_and_costs_no_process(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """Stays fresh without a helper; a library that arrives later is noticed at the next look."""
    standin.uninstall()

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            first = now(sensor)
            assert (Gpu(present=False), "") == (first.value, first.error)
            await until(lambda: not helpers())
            await until(lambda: now(sensor).read_at_s > first.read_at_s)
            assert now(sensor).value == Gpu(present=False)
            standin.install()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_a_library_that_shows_no_device_is_absent(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """NVML without any GPU, on a machine where PCI has none either."""
    standin.shows("count=0")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert now(sensor).value == Gpu(present=False)

    play(scene())


@pytest.mark.parametrize("node", [False, True], ids=["on PCI", "a node in /dev"])
def test_a_gpu_that_nobody_can_ask_is_not_absent(standin: StandIn, nvidia: NvidiaMachine, node: bool) -> None:
    """There is one, and no library: unknown, not absent (R12)."""
    standin.uninstall()
    if node:
        (nvidia.dev / "nvidia0").touch()
    else:
        nvidia.pci(kind="0x030200")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert now(sensor).value is None
            assert "there is an NVIDIA GPU" in now(sensor).error
            assert "libnvidia-ml.so.1 does not load" in now(sensor).error

    play(scene())


def test_an_answer_that_cannot_be_judged_is_asked_for_again(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """No descriptor is left to read the task's processes with, say: nothing else would ever make it look again."""
    broken = True

    def own_pids() -> frozenset[int]:
        if broken:
            raise OSError(24, "Too many open files")
        return frozenset()

    async def scene() -> None:
        nonlocal broken
        setup = replace(nvidia.setup(proc_root=Path("/proc"), settle_s=0.02), own_pids=own_pids)
        async with nvidia.watched(NvmlSensor(setup)) as sensor:
            await until(lambda: "Too many open files" in sensor.last.error)
            broken = False
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_presence_none_never_looks(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """`gpu.presence: none` says that there is nothing to look at."""

    async def scene() -> None:
        async with nvidia.sensor(GpuSettings(presence="none")) as sensor:
            reading = sensor.latest(5.0)
            assert (Gpu(present=False), "gpu.presence: none", 5.0) == (
                reading.value, reading.source, reading.read_at_s,
            )  # fmt: skip
            assert helpers() == []

    play(scene())


def test_the_first_sample_of_a_helper_is_not_believed(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """Loading the driver shows as load; the reading comes with the second sample."""
    standin.shows("0.util=97")

    async def scene() -> None:
        starting = asyncio.create_task(entered())
        await until(lambda: helpers())
        standin.shows()
        await starting

    async def entered() -> None:
        async with nvidia.sensor(settle_s=1.5) as sensor:
            assert now(sensor).value == Gpu()

    play(scene())


@pytest.mark.parametrize(
    ("xid", "error"), [(79, "GPU-fake-0: the driver reported Xid 79 (it has fallen off the bus)"), (31, "")]
)
def test_a_fault_of_the_gpu_itself_is_unknown_until_it_recovers(
    standin: StandIn, nvidia: NvidiaMachine, xid: int, error: str
) -> None:
    """A program's own faults (Xid 31) are reported, and nothing more."""

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            sensor.demand(0.2)
            assert sensor.describe()[0]["xid"] == 0
            standin.shows(f"0.xid={xid}")
            if error:
                await until(lambda: now(sensor).error.startswith(error))
                standin.shows()
            else:
                await until(lambda: sensor.describe()[0]["xid"] == xid)
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


@pytest.mark.parametrize(
    ("lines", "throttled"),
    [
        ((), []),
        (("0.throttle=0x25",), ["power cap", "heat"]),
        (("0.throttle=0x1",), []),
        (("0.throttle=-1",), []),
        (("err.nvmlEventSetCreate=3", "0.throttle=0x80"), ["power brake"]),
        (("err.nvmlDeviceRegisterEvents=3",), []),
    ],
)
def test_what_holds_the_clocks_down_is_told(
    standin: StandIn, nvidia: NvidiaMachine, lines: tuple[str, ...], throttled: list[str]
) -> None:
    standin.shows(*lines)

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert (now(sensor).value, sensor.describe()[0]["throttled"]) == (Gpu(), throttled)

    play(scene())


def test_a_lent_gpu_that_is_unplugged(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """The other one, which is not lent, stands for nothing."""
    standin.shows("count=2")

    async def scene() -> None:
        async with nvidia.sensor(GpuSettings(lend=["GPU-fake-1"])) as sensor:
            assert now(sensor).value == Gpu()
            standin.shows("count=1")
            assert "GPU-fake-1 (gpu.lend in node.yaml) is not there" in (await sensor.refresh(3)).error

    play(scene())
