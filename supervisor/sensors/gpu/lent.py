"""The lent GPUs of all makers: one reading from NVML's (NVIDIA) and DRM's (AMD, Intel).

`gpu.lend` decides which: UUIDs are NVIDIA's, PCI addresses the others'; only what is named is looked at. If nothing is named,
NVIDIA's are lent if there are any, because most GPU tasks need them; else the DRM GPU. So a laptop whose desktop runs on its
Intel part lends its NVIDIA part, and the Intel part is left alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from states.observation import Gpu, Reading
from supervisor.sensors.base import Wake
from supervisor.sensors.gpu.grant import Grant, Other, grant
from supervisor.sensors.gpu.nvml import NvmlSensor
from supervisor.sensors.gpu.ownership import NO_TASK_USE, TaskUse
from supervisor.sensors.gpu.pci_gpus import PciGpus, driver, is_drm
from supervisor.sensors.gpu.poller import GpuPoller, Setup

if TYPE_CHECKING:
    from supervisor.sensors.gpu.drm import DrmSensor

PCI_ADDRESS: Final = re.compile(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")

Part = GpuPoller[Any]


class LentGpus:
    """One sensor over both kinds; its methods are those of GpuPoller."""

    name = "gpu"

    def __init__(self, setup: Setup) -> None:
        pci = [entry for entry in setup.settings.lend if PCI_ADDRESS.fullmatch(entry)]
        uuids = [entry for entry in setup.settings.lend if entry not in pci]
        self._lends_none = setup.settings.presence == "none"
        self._drm_gpus = PciGpus(setup.sys_root, is_drm)
        self._interval_s: float | None = None
        self._wake: Wake | None = None
        self._started: dict[Part, asyncio.Task[None]] = {}
        self._drm_setup = setup.lending(pci)
        self._drm: DrmSensor | None = None
        self.nvml = NvmlSensor(setup.lending(uuids))
        self._named: list[Part] = ([self.nvml] if uuids else []) + ([self.drm] if pci else [])

    @property
    def drm(self) -> DrmSensor:
        """The sensor of AMD's and Intel's, made when it is needed."""
        if self._drm is None:
            from supervisor.sensors.gpu.drm import DrmSensor  # most machines with an NVIDIA GPU never need it

            self._drm = DrmSensor(self._drm_setup)
            self._drm.demand(self._interval_s)
        return self._drm

    async def start(self, wake: Wake) -> None:
        self._wake = wake
        for part in self._named or [self.nvml]:
            self._begin(part)
        await asyncio.gather(*self._started.values())
        if not self._named and self._drm_instead:
            await self._begin(self.drm)

    async def stop(self) -> None:
        self._wake = None
        for task in self._started.values():
            task.cancel()
        await asyncio.gather(*self._started.values(), return_exceptions=True)
        await asyncio.gather(*(part.stop() for part in self._started))
        self._started = {}

    def latest(self, now_s: float) -> Reading[Gpu]:
        """See GpuPoller; looks at the DRM GPU from now on if NVIDIA's have gone."""
        if self._named:
            return combine([part.latest(now_s) for part in self._named])
        reading = self.nvml.latest(now_s)
        if self._lends_none or self._wake is None or not self._drm_instead:
            return reading
        self._begin(self.drm)
        return self.drm.latest(now_s)

    @property
    def own(self) -> TaskUse:
        return combine_task_use([part.own for part in self._started])

    def demand(self, interval_s: float | None) -> None:
        self._interval_s = interval_s
        for part in (self.nvml, self._drm):
            if part is not None:
                part.demand(interval_s)

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        parts = self._named or [self.drm if self._drm in self._started and self._drm_instead else self.nvml]
        return combine(await asyncio.gather(*(part.refresh(timeout_s) for part in parts)))

    def describe(self) -> list[dict[str, Any]]:
        return [row for part in self._started for row in part.describe()]

    def grant(self) -> Grant:
        """What a task that starts now gets of the GPUs. Reads small files, and wakes no GPU."""
        none = self._lends_none
        drm = self._drm_gpus.present()
        nvidia = None if none or (self._named and self.nvml not in self._named) else self.nvml.granted()
        instead = not none and not self._named and nvidia is None
        lent = self._drm.lent if self._drm is not None and (instead or self._drm in self._named) else []
        others = [Other(pci, folder, driver(folder), pci in lent) for pci, folder in drm.items()]
        return grant(str(self._drm_setup.dev_root), nvidia, others)

    @property
    def _drm_instead(self) -> bool:
        """There is no NVIDIA GPU, but another."""
        last = self.nvml.last
        return last.value is not None and not last.value.present and bool(self._drm_gpus.present())

    def _begin(self, part: Part) -> asyncio.Task[None]:
        if part not in self._started:
            assert self._wake is not None
            self._started[part] = asyncio.get_running_loop().create_task(part.start(self._wake))
        return self._started[part]


def combine_task_use(parts: Sequence[TaskUse]) -> TaskUse:
    """The task's use of several GPUs as one: the largest of each number."""
    if len(parts) <= 1:
        return parts[0] if parts else NO_TASK_USE
    return TaskUse(
        processes=max(part.processes for part in parts),
        vram_gb=max(part.vram_gb for part in parts),
        percent=max((part.percent for part in parts if part.percent is not None), default=None),
        left=", ".join(part.left for part in parts if part.left),
        left_by=tuple(pid for part in parts for pid in part.left_by),
        stray=", ".join(part.stray for part in parts if part.stray),
    )


def combine(readings: Sequence[Reading[Gpu]]) -> Reading[Gpu]:
    """Several lent GPUs as one: unknown if any is, absent if any is, else the largest numbers and all foreign processes."""
    if len(readings) == 1:
        return readings[0]
    source = ", ".join(reading.source for reading in readings)
    read_at_s = min(reading.read_at_s for reading in readings)
    if errors := [reading.error for reading in readings if reading.value is None]:
        return Reading(None, "; ".join(errors), source, read_at_s)
    values = [reading.value for reading in readings if reading.value is not None]
    busiest, fullest = max(values, key=lambda value: value.percent), max(values, key=lambda value: value.vram_gb)
    gpu = Gpu(
        percent=busiest.percent,
        vram_gb=fullest.vram_gb,
        foreign=sum(value.foreign for value in values),
        present=all(value.present for value in values),
        foreign_names=tuple(name for value in values for name in value.foreign_names),
        held=", ".join(value.held for value in values if value.held),
        busiest=busiest.busiest,
        fullest=fullest.fullest,
    )
    return Reading(gpu, "", source, read_at_s)
