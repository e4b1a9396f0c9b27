"""The lent GPUs, whoever made them: one reading out of NVML's (NVIDIA) and DRM's (AMD, Intel).

`gpu.lend` decides which: UUIDs are NVIDIA's, PCI addresses the others'; only what is named is looked at. Where nothing
is named, NVIDIA's are lent if there are any, for they are what such tasks are written for; else the DRM GPU. So a laptop
whose desktop runs on its Intel part lends its NVIDIA part, and the Intel part is left alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from msgspec import structs

from states.observation import Gpu, Reading
from supervisor.sensors.base import Wake
from supervisor.sensors.gpu.drm_cards import Cards
from supervisor.sensors.gpu.nvml import NvmlSensor
from supervisor.sensors.gpu.ownership import NOTHING_OWN, Own
from supervisor.sensors.gpu.poller import GpuWatch, Setup

PCI_ADDRESS: Final = re.compile(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")


class Gpus:
    """One sensor over both kinds, with the face of each (see GpuWatch)."""

    name = "gpu"

    def __init__(self, setup: Setup) -> None:
        self._settings = setup.settings
        pci = [entry for entry in self._settings.lend if PCI_ADDRESS.fullmatch(entry)]
        uuids = [entry for entry in self._settings.lend if entry not in pci]
        self.nvml = NvmlSensor(replace(setup, settings=structs.replace(setup.settings, lend=uuids)))
        self._cards = Cards(setup.sys_root)
        self._interval_s: float | None = None

        def make_drm() -> GpuWatch:
            from supervisor.sensors.gpu.drm import DrmSensor  # most machines with an NVIDIA GPU never need it

            return DrmSensor(replace(setup, settings=structs.replace(setup.settings, lend=pci)))

        self._make_drm = make_drm
        self._drm: GpuWatch | None = None
        self._named: list[GpuWatch] = ([self.nvml] if uuids else []) + ([self.drm] if pci else [])
        self._wake: Wake | None = None
        self._started: dict[GpuWatch, asyncio.Task[None]] = {}

    @property
    def drm(self) -> GpuWatch:
        """The sensor of AMD's and Intel's, made when it is needed."""
        if self._drm is None:
            self._drm = self._make_drm()
            self._drm.demand(self._interval_s)
        return self._drm

    async def start(self, wake: Wake) -> None:
        """Begin to watch; see GpuWatch."""
        self._wake = wake
        for part in self._named or [self.nvml]:
            self._begin(part)
        await asyncio.gather(*self._started.values())
        if not self._named and self._instead:
            await self._begin(self.drm)

    async def stop(self) -> None:
        """Let go of everything."""
        self._wake = None
        for task in self._started.values():
            task.cancel()
        await asyncio.gather(*self._started.values(), return_exceptions=True)
        await asyncio.gather(*(part.stop() for part in self._started))
        self._started = {}

    def latest(self, now_s: float) -> Reading[Gpu]:
        """What is known now of all that is lent."""
        return combine([part.latest(now_s) for part in self._parts(now_s)])

    @property
    def own(self) -> Own:
        """What the node's own task does on all that is lent, by the last look."""
        parts = [part.own for part in self._started]
        return parts[0] if len(parts) == 1 else all_own(parts)

    def demand(self, interval_s: float | None) -> None:
        """How often to look; see GpuWatch."""
        self._interval_s = interval_s
        for part in (self.nvml, self._drm):
            if part is not None:
                part.demand(interval_s)

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """Look now, and wait for the answers, at most `timeout_s` seconds."""
        parts = [part for part in self._started if part is not self.nvml or self._named or not self._instead]
        return combine(await asyncio.gather(*(part.refresh(timeout_s) for part in parts or [self.nvml])))

    def describe(self) -> list[dict[str, Any]]:
        """One row a GPU for doctor and check-gpu; see both sensors."""
        return [row for part in self._started for row in part.describe()]

    def _parts(self, now_s: float) -> Sequence[GpuWatch]:
        """Those that are lent now: NVIDIA's may come and go."""
        if self._named:
            return self._named
        if self._settings.presence == "none" or self._wake is None:
            return [self.nvml]
        reading = self.nvml.latest(now_s)
        if reading.value is None or reading.value.present or not self._instead:
            return [self.nvml]
        self._begin(self.drm)
        return [self.drm]

    @property
    def _instead(self) -> bool:
        """There is no NVIDIA GPU, but another."""
        known = self.nvml.seen
        return known.value is not None and not known.value.present and bool(self._cards.there())

    def _begin(self, part: GpuWatch) -> asyncio.Task[None]:
        if part not in self._started:
            assert self._wake is not None
            self._started[part] = asyncio.get_running_loop().create_task(part.start(self._wake))
        return self._started[part]


def all_own(parts: Sequence[Own]) -> Own:
    """The task's use of several GPUs as one: the most of each."""
    if not parts:
        return NOTHING_OWN
    percents = [part.percent for part in parts if part.percent is not None]
    return Own(
        max(part.processes for part in parts),
        max(part.vram_gb for part in parts),
        max(percents, default=None),
        ", ".join(part.left for part in parts if part.left),
        tuple(pid for part in parts for pid in part.left_by),
    )


def combine(readings: Sequence[Reading[Gpu]]) -> Reading[Gpu]:
    """Several lent GPUs as one: unknown if any is, missing if any is, else the most of each, and everybody on any."""
    if len(readings) == 1:
        return readings[0]
    source = ", ".join(reading.source for reading in readings)
    read_at_s = min(reading.read_at_s for reading in readings)
    if errors := [reading.error for reading in readings if reading.value is None]:
        return Reading(None, "; ".join(errors), source, read_at_s)
    values = [reading.value for reading in readings if reading.value is not None]
    gpu = Gpu(
        percent=max(value.percent for value in values),
        vram_gb=max(value.vram_gb for value in values),
        foreign=sum(value.foreign for value in values),
        present=all(value.present for value in values),
        foreign_names=tuple(name for value in values for name in value.foreign_names),
        held=", ".join(value.held for value in values if value.held),
    )
    return Reading(gpu, "", source, read_at_s)
