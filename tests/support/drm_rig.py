"""AMD and Intel GPUs on made-up trees of sysfs and /proc, as the kernel's drivers show them."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.gpu_rig import Machine

from supervisor.config.schema import GpuSettings
from supervisor.sensors.gpu.drm import DrmSensor

GIB = 2**30
AMD, INTEL = "0000:03:00.0", "0000:00:02.0"


class DrmMachine(Machine):
    """A machine with such GPUs, and processes that have them open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.dev / "dri").mkdir(parents=True)
        self.cards = 0

    def card(self, pci: str = AMD, driver: str = "amdgpu", status: str = "active", **files: object) -> Path:
        """A GPU; `files` of its device's folder, or of its card's below `gt`."""
        device = self.sys / "devices" / pci
        name, render = f"card{self.cards}", f"renderD{128 + self.cards}"
        self.cards += 1
        for made in (device / "power", device / "drm" / name, device / "drm" / render, self.sys / "drivers" / driver):
            made.mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(self.sys / "drivers" / driver)
        (device / "class").write_text("0x030000\n")
        (self.sys / "bus/pci/devices" / pci).symlink_to(device)
        for node in (name, render):
            (self.dev / "dri" / node).touch(mode=0o660)
        (device / "power/runtime_status").write_text(f"{status}\n")
        for file, value in files.items():
            self.write(device, file, value)
        return device

    def amd(self, percent: object = 0, used: int = 0, **more: Any) -> Path:
        return self.card(gpu_busy_percent=percent, mem_info_vram_used=used, mem_info_vram_total=16 * GIB, **more)

    def write(self, device: Path, file: str, value: object) -> None:
        path = device / file
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}")
        new.write_text(f"{value}\n")
        os.replace(new, path)

    def process(self, pid: int, comm: str, *fdinfos: dict[str, object], uid: int = 1000) -> None:
        """A process with these DRM descriptors."""
        folder = self.proc / str(pid)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "fd").mkdir(parents=True)
        (folder / "fdinfo").mkdir()
        (folder / "comm").write_text(f"{comm}\n")
        ids = "\t".join([str(uid)] * 4)
        (folder / "status").write_text(f"Name:\t{comm}\nUid:\t{ids}\nGid:\t{ids}\nGroups:\t\n")
        (folder / "fd/0").symlink_to("/dev/null")
        (folder / "fdinfo/0").write_text("pos:\t0\nflags:\t02\n")
        for fd, fields in enumerate(fdinfos, 3):
            (folder / f"fd/{fd}").symlink_to("/dev/dri/renderD128")
            (folder / f"fdinfo/{fd}").write_text("pos:\t0\n" + "".join(f"{k}:\t{v}\n" for k, v in fields.items()))

    def sensor(
        self, settings: GpuSettings | None = None, **more: Any
    ) -> contextlib.AbstractAsyncContextManager[DrmSensor]:
        """A started sensor."""
        return self.watched(DrmSensor(self.setup(settings, **more)))


def context(pid: str = AMD, client: int = 1, vram_kib: int = 0, engine_ns: int = 0, **more: object) -> dict[str, object]:
    """A DRM descriptor as amdgpu writes it."""
    return {
        "drm-driver": "amdgpu", "drm-pdev": pid, "drm-client-id": client, "drm-memory-vram": f"{vram_kib} KiB",
        "drm-engine-gfx": f"{engine_ns} ns",
    } | {key.replace("_", "-"): value for key, value in more.items()}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> DrmMachine:
    """A machine of this test's own."""
    return DrmMachine(tmp_path / "machine")
