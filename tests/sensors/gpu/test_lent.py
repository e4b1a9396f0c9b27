"""The lent GPUs as one sensor, of all makers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from support.drm_rig import AMD, GIB, DrmMachine, world
from support.gpu_rig import helpers, now, soon_again, until
from support.nvml_standin import StandIn, nvml_library, standin
from support.waiting import play

from states.observation import Gpu, Reading
from supervisor.config.schema import GpuSettings
from supervisor.sensors.gpu.lent import LentGpus, combine

__all__ = ["nvml_library", "soon_again", "standin", "world"]  # fixtures

pytestmark = pytest.mark.usefixtures("soon_again")


def test_several_lent_gpus_are_one_reading() -> None:
    first, second = Reading(Gpu(5, 1, 1, True, ("a",)), "", "NVML", 10.0), Reading(Gpu(50, 0.5), "", "DRM", 9.0)
    assert combine([first, second]) == Reading(Gpu(50, 1, 1, True, ("a",)), "", "NVML, DRM", 9.0)
    assert combine([first, Reading(None, "hangs", "DRM", 9.0)]).error == "hangs"
    assert combine([first, Reading(Gpu(present=False), "", "DRM", 9.0)]).value == Gpu(5, 1, 1, False, ("a",))
    assert combine([second]) is second


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the NVIDIA library."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libnvidia-ml.so.1").write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))


def both(world: DrmMachine, **settings: Any) -> contextlib.AbstractAsyncContextManager[LentGpus]:
    return world.watched(LentGpus(world.setup(GpuSettings(**settings))))


@pytest.mark.usefixtures("no_nvml")
def test_without_nvidia_the_other_gpu_is_lent(world: DrmMachine) -> None:
    async def scene() -> None:
        async with both(world) as sensor:
            assert now(sensor).value == Gpu(present=False)
            world.amd(percent=6)
            await until(lambda: now(sensor).value == Gpu(6))
            assert (await sensor.refresh(3)).value == Gpu(6)
            assert [row["pci"] for row in sensor.describe()] == [AMD]

    play(scene())


def test_nvidias_is_preferred_and_both_can_be_lent(standin: StandIn, world: DrmMachine) -> None:
    """A laptop's own Intel or AMD part is its desktop's business, unless it is named."""
    world.amd(percent=6, used=GIB)
    standin.shows("0.util=5", f"0.mem_used={GIB // 2}")

    async def scene() -> None:
        async with both(world) as sensor:
            assert now(sensor).value == Gpu(5, 0.5)
            assert list(sensor._started) == [sensor.nvml]
        async with both(world, lend=["GPU-fake-0", AMD]) as sensor:
            assert now(sensor).value == Gpu(6, 1)
            assert [row.get("uuid") or row.get("pci") for row in sensor.describe()] == ["GPU-fake-0", AMD]

    play(scene())


@pytest.mark.usefixtures("no_nvml")
def test_what_is_named_alone_is_looked_at(world: DrmMachine) -> None:
    world.amd(percent=6)

    async def scene() -> None:
        async with both(world, lend=[AMD.upper()]) as sensor:
            assert now(sensor).value == Gpu(6)
            assert list(sensor._started) == [sensor.drm]
        async with both(world, lend=[AMD, "GPU-there-is-none"]) as sensor:
            assert now(sensor).value == Gpu(6, present=False)
        async with both(world, presence="none") as sensor:
            assert now(sensor).value == Gpu(present=False)
            assert helpers() == []

    play(scene())
