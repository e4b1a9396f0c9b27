"""AMD and Intel GPUs on made-up trees of sysfs and /proc, read by the real helper: load, memory, whose it is, and sleep."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from support.drm_rig import AMD, GIB, INTEL, DrmMachine, context, world
from support.gpu_rig import CLOCK, helpers, now, soon_again, until
from support.waiting import play

from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.drm import largest
from supervisor.sensors.gpu.pci_gpus import PciGpus, is_drm

__all__ = ["soon_again", "world"]  # fixtures

pytestmark = pytest.mark.usefixtures("soon_again")


def test_an_amd_gpu_is_read_and_followed(world: DrmMachine) -> None:
    device = world.amd(percent=7, used=GIB)
    world.process(4001, "game", context(vram_kib=1 << 20, engine_ns=5), context(client=1, vram_kib=1 << 20))

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.demand(0.2)
            assert (now(sensor).value, now(sensor).source) == (Gpu(7, 1, 1, True, ("game (pid 4001)",)), "DRM")
            (row,) = sensor.describe()
            assert (row["pci"], row["driver"], row["lent"], row["used_gb"], row["total_gb"]) == (AMD, "amdgpu", True, 1, 16)
            assert row["processes"] == [{"pid": 4001, "name": "game", "used_gb": 1.0, "whose": "foreign"}]
            shutil.rmtree(world.proc / "4001")
            world.write(device, "gpu_busy_percent", 0)
            world.write(device, "mem_info_vram_used", 0)
            await until(lambda: now(sensor).value == Gpu())
            wakes = world.wakes
            read_at_s = now(sensor).read_at_s
            await until(lambda: now(sensor).read_at_s > read_at_s + 0.3)
            assert world.wakes == wakes

    play(scene())


def test_the_own_task_is_not_held_against_itself(world: DrmMachine) -> None:
    world.amd(percent=100, used=10 * GIB)
    world.process(4002, "worker", context(vram_kib=9 << 20, engine_ns=1))
    world.own = frozenset({4002})

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(0, 1)

    play(scene())


def test_a_task_must_give_its_memory_back(world: DrmMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver keeps of a task that is over blocks once it is late, also across a failure, until it is free."""
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 2.0)
    device = world.amd(percent=100, used=10 * GIB)
    world.process(4002, "worker", context(vram_kib=9 << 20, engine_ns=1))
    world.own = frozenset({4002})

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.demand(0.2)
            assert (now(sensor).value, sensor.own.vram_gb, sensor.own.left) == (Gpu(0, 1), 9, "")
            shutil.rmtree(world.proc / "4002")
            world.own = frozenset()
            world.write(device, "mem_info_vram_used", 3 * GIB)
            world.write(device, "gpu_busy_percent", 0)
            assert (await sensor.refresh(3)).value == Gpu(0, 3)
            assert sensor.own.left == "2 GiB by no listed process"
            await until(lambda: (seen := now(sensor).value) is not None and seen.held == "2 GiB by no listed process")
            world.write(device, "gpu_busy_percent", "")
            await until(lambda: now(sensor).value is None)
            world.write(device, "gpu_busy_percent", 0)
            await until(lambda: now(sensor).value == Gpu(0, 3, held="2 GiB by no listed process"))
            world.write(device, "mem_info_vram_used", GIB)
            await until(lambda: now(sensor).value == Gpu(0, 1))
            assert sensor.own.left == ""
            world.write(device, "mem_info_vram_used", 3 * GIB)  # now it belongs to another process
            await until(lambda: now(sensor).error.startswith("3 GiB of VRAM"))

    play(scene())


@pytest.mark.parametrize(
    ("driver", "file"),
    [("i915", "drm/card0/gt/gt0/rc6_residency_ms"), ("xe", "tile0/gt0/gtidle/idle_residency_ms")],
)
def test_an_intel_gpu_is_busy_while_it_is_not_idle(driver: str, file: str, world: DrmMachine) -> None:
    """Two looks show it; the busiest of its parts counts."""
    device = world.card(INTEL, driver)
    world.write(device, file, 0)
    world.write(device, file.replace("gt0", "gt1"), 10**9)
    began_s = time.monotonic()

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.demand(0.3)
            assert now(sensor).error.startswith(f"100 % load on {INTEL}, by no listed process")
            async with asyncio.TaskGroup() as tasks:
                idle = tasks.create_task(be_idle())
                await until(lambda: (seen := now(sensor).value) is not None and seen.percent < 20)
                idle.cancel()
            (row,) = sensor.describe()
            assert (row["driver"], row["total_gb"]) == (driver, None)

    async def be_idle() -> None:
        while True:
            idle_ms = int((time.monotonic() - began_s) * 1000)
            world.write(device, file, idle_ms)
            world.write(device, file.replace("gt0", "gt1"), 10**9 + idle_ms)
            await asyncio.sleep(0.005)

    play(scene())


def test_a_sleeping_gpu_is_free_and_left_asleep(world: DrmMachine) -> None:
    """Nothing of it is read but its power state: the files that would wake it are pipes nobody writes to."""
    device = world.card(AMD, "amdgpu", "suspended")
    for file in ("gpu_busy_percent", "mem_info_vram_used"):
        os.mkfifo(device / file)

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert (now(sensor).value, now(sensor).source) == (Gpu(), "PCI runtime_status (asleep)")
            assert helpers() == []
            assert sensor.describe() == [{"pci": AMD, "lent": True, "power": "suspended"}]
            first_s = now(sensor).read_at_s
            await until(lambda: now(sensor).read_at_s > first_s)
            for file in ("gpu_busy_percent", "mem_info_vram_used"):
                (device / file).unlink()
            world.write(device, "gpu_busy_percent", 15)
            world.write(device, "power/runtime_status", "active")
            await until(lambda: now(sensor).value == Gpu(15))
            world.write(device, "power/runtime_status", "suspended")
            assert now(sensor).value == Gpu()
            await until(lambda: not helpers())

    play(scene())


def test_one_that_sleeps_beside_one_that_is_awake_is_not_read(world: DrmMachine) -> None:
    world.amd(percent=3)
    other = world.card(INTEL, "i915", "suspended")
    os.mkfifo(other / "mem_info_vram_used")

    async def scene() -> None:
        async with world.sensor(GpuSettings(lend=[AMD, INTEL])) as sensor:
            assert now(sensor).value == Gpu(3, busiest=AMD)
            assert {row["pci"]: row["power"] for row in sensor.describe()} == {AMD: "active", INTEL: "suspended"}

    play(scene())


@pytest.mark.parametrize(
    ("percent", "error"),
    [
        ("", "gpu_busy_percent holds no number"),
        ("many", "gpu_busy_percent holds no number"),
        (None, "gpu_busy_percent cannot be read: No such file"),
        ("101", "impossible utilisation (101 %)"),
        ("-1", "impossible utilisation (-1 %)"),
    ],
)
def test_what_a_driver_cannot_say_is_unknown_and_tried_again(percent: str | None, error: str, world: DrmMachine) -> None:
    device = world.amd()
    if percent is None:
        (device / "gpu_busy_percent").unlink()
    else:
        world.write(device, "gpu_busy_percent", percent)

    async def scene() -> None:
        async with world.sensor() as sensor:
            await until(lambda: error in now(sensor).error)
            assert now(sensor).value is None
            world.write(device, "gpu_busy_percent", 1)
            await until(lambda: now(sensor).value == Gpu(1))

    play(scene())


def test_a_read_that_hangs_is_unknown_and_left_behind(world: DrmMachine) -> None:
    """A pipe without a writer stands for a driver that does not come back."""
    device = world.card(AMD)
    os.mkfifo(device / "gpu_busy_percent")

    async def scene() -> None:
        async with world.sensor(deadline_s=1.5, first_deadline_s=1.5) as sensor:
            await until(lambda: now(sensor).error == "the GPU's driver hangs: no answer within 1.5 s")
            (device / "gpu_busy_percent").unlink()
            world.write(device, "gpu_busy_percent", 2)
            await until(lambda: now(sensor).value == Gpu(2))

    play(scene())


def test_none_is_absent_and_one_that_comes_is_seen(world: DrmMachine) -> None:
    (world.dev / "dri").rmdir()

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(present=False)
            (world.dev / "dri").mkdir()
            world.amd(percent=4)
            await until(lambda: now(sensor).value == Gpu(4))

    play(scene())


def test_one_that_is_named_must_be_there(world: DrmMachine) -> None:
    world.amd()

    async def scene() -> None:
        async with world.sensor(GpuSettings(lend=[INTEL])) as sensor:
            assert f"GPU {INTEL} (gpu.lend in node.yaml) is not there" in now(sensor).error
            device = world.card(INTEL, "i915")
            world.write(device, "drm/card1/gt/gt0/rc6_residency_ms", 0)
            await until(lambda: now(sensor).error.startswith("100 % load"))

    play(scene())


def test_the_one_with_most_memory_is_lent(world: DrmMachine) -> None:
    world.card(INTEL, "i915")
    world.card("0000:0a:00.0", "amdgpu", gpu_busy_percent=9, mem_info_vram_total=GIB // 2)
    world.amd(percent=2)
    world.card("0000:0b:00.0", "nouveau")
    present = PciGpus(world.sys, is_drm).present()
    assert set(present) == {INTEL, AMD, "0000:0a:00.0"}
    assert largest(present) == [AMD]


def test_an_open_in_the_folder_is_looked_at_at_once(world: DrmMachine) -> None:
    world.amd()

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu()
            world.process(4003, "game", context(engine_ns=9))
            (world.dev / "dri/renderD128").open().close()
            await until(lambda: (seen := now(sensor).value) is not None and seen.foreign == 1)

    play(scene())


def opened(pid: int) -> list[str]:
    """What a process has open; it opens and closes files meanwhile."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(fd))
    return found


def test_an_open_during_a_look_is_anothers(world: DrmMachine) -> None:
    """Our helper opens no node of the GPU."""
    device = world.amd()

    async def scene() -> None:
        async with world.sensor() as sensor:
            (device / "gpu_busy_percent").unlink()
            os.mkfifo(device / "gpu_busy_percent")
            pipe = os.open(device / "gpu_busy_percent", os.O_RDWR | os.O_NONBLOCK)
            sensor._look()  # it waits for what comes through the pipe
            (helper,) = helpers()
            await until(lambda: str(device / "gpu_busy_percent") in opened(helper.pid))
            (world.dev / "dri/renderD128").open().close()
            await asyncio.sleep(0.05)
            world.write(device, "gpu_busy_percent", 0)
            os.write(pipe, b"0\n")
            os.close(pipe)
            await until(lambda: not sensor._busy)
            world.process(4003, "game", context(engine_ns=9))  # its context comes after the look, as after an open
            await until(lambda: (seen := now(sensor).value) is not None and seen.foreign == 1)

    play(scene())


def test_a_folder_that_goes_and_comes_again_is_watched_again(world: DrmMachine) -> None:
    """The only GPU is unplugged, or its driver is loaded again."""
    world.amd()

    async def scene() -> None:
        async with world.sensor() as sensor:
            shutil.rmtree(world.dev / "dri")
            (world.dev / "dri").mkdir()
            (world.dev / "dri/renderD128").touch()
            assert (await sensor.refresh(3)).value == Gpu()
            world.process(4003, "game", context(engine_ns=9))
            (world.dev / "dri/renderD128").open().close()
            await until(lambda: (seen := now(sensor).value) is not None and seen.foreign == 1)

    play(scene())


def test_idle_times_from_before_a_suspend_tell_nothing(world: DrmMachine) -> None:
    """They go on through a sleep, the clock of the looks does not."""
    device, slept_s = world.card(INTEL, "i915"), 0.0
    world.write(device, "drm/card0/gt/gt0/rc6_residency_ms", 1000)

    async def scene() -> None:
        nonlocal slept_s
        async with world.sensor(suspended_s=lambda: slept_s) as sensor:
            assert now(sensor).error.startswith("100 % load")
            before_s = now(sensor).read_at_s
            await until(lambda: CLOCK.now_s() > before_s + 0.4)
            world.write(device, "drm/card0/gt/gt0/rc6_residency_ms", 3_600_000)
            slept_s = 3600.0
            assert now(sensor).error.startswith("not looked at since")
            await until(lambda: not now(sensor).error.startswith("not looked at since"))
            assert now(sensor).error.startswith("100 % load")

    play(scene())


def test_a_gpu_that_is_named_twice_is_one(world: DrmMachine) -> None:
    world.amd(percent=5)

    async def scene() -> None:
        async with world.sensor(GpuSettings(lend=[AMD, AMD.upper()])) as sensor:
            assert now(sensor).value == Gpu(5)

    play(scene())


def test_the_one_that_is_not_shown_is_named(world: DrmMachine) -> None:
    """There by PCI, and without a word from its driver."""
    world.amd()
    device = world.card(INTEL, "i915")
    world.write(device, "drm/card1/gt/gt0/rc6_residency_ms", 0)

    async def scene() -> None:
        async with world.sensor(GpuSettings(lend=[AMD, INTEL])) as sensor:
            sensor._answered(json.dumps({"at_s": 1.0, "devices": [{"pci": AMD, "driver": "amdgpu", "percent": 0}]}).encode())
            assert now(sensor).error == f"GPU {INTEL} is not shown by its driver any more"

    play(scene())


def test_after_a_suspend_it_is_looked_at_anew(world: DrmMachine) -> None:
    world.amd()
    slept_s = 0.0

    async def scene() -> None:
        nonlocal slept_s
        async with world.sensor(suspended_s=lambda: slept_s) as sensor:
            assert now(sensor).value == Gpu()
            slept_s = 100.0
            assert now(sensor).error == "not looked at since the machine woke up"
            await until(lambda: now(sensor).value == Gpu())

    play(scene())
