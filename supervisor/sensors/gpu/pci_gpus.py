"""Finds GPUs on the PCI bus, in sysfs, without waking any. It imports little, because a helper uses it too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from supervisor.linux.small_files import read_small

if TYPE_CHECKING:
    from pathlib import Path

GPU_CLASSES: Final = ("0x03", "0x12")  # display controllers, and accelerators without a display
NVIDIA: Final = "0x10de"
DRM_DRIVERS: Final = ("amdgpu", "i915", "xe")


class PciGpus:
    """The GPUs of one kind; `is_ours` decides by the device's folder in sysfs."""

    def __init__(self, sys_root: Path | str, is_ours: Callable[[str], bool]) -> None:
        self._folder, self._is_ours = f"{sys_root}/bus/pci/devices", is_ours
        self._is_gpu: dict[str, bool] = {}  # a device's class never changes

    def present(self) -> dict[str, str]:
        """Their folders by PCI address (`0000:01:00.0`), sorted."""
        try:
            names = sorted(os.listdir(self._folder))
        except OSError:
            names = []
        folders = {name: f"{self._folder}/{name}" for name in names}
        known = self._is_gpu
        self._is_gpu = {
            name: known[name] if name in known else read_small(f"{folder}/class").startswith(GPU_CLASSES)
            for name, folder in folders.items()
        }
        return {name: folder for name, folder in folders.items() if self._is_gpu[name] and self._is_ours(folder)}


def is_nvidia(folder: str) -> bool:
    """Whether it is NVIDIA's, with or without a driver."""
    return read_small(f"{folder}/vendor") == NVIDIA


def is_drm(folder: str) -> bool:
    """Whether it has a DRM driver of AMD or Intel."""
    return driver(folder) in DRM_DRIVERS


def unjudged(sys_root: Path | str = "/sys") -> dict[str, str]:
    """GPUs that programs can use and that no sensor reads, such as a virtual machine's: their drivers by render node. On no
    bus alone: a processor's own GPU may be on none."""
    folder = f"{sys_root}/class/drm"
    try:
        nodes = sorted(name for name in os.listdir(folder) if name.startswith("renderD"))
    except OSError:
        return {}
    drivers = {name: driver(f"{folder}/{name}/device") for name in nodes}
    return {name: found or "no driver" for name, found in drivers.items() if found not in (*DRM_DRIVERS, "nvidia")}


def driver(folder: str) -> str:
    """The name of its driver; empty without one."""
    link = f"{folder}/driver"
    return os.path.basename(os.path.realpath(link)) if os.path.islink(link) else ""


def power(folder: str, what: str) -> str:
    """`runtime_status` or `control`; empty if there is no such file."""
    return read_small(f"{folder}/power/{what}")


def asleep(folder: str) -> bool:
    """Whether its driver has suspended it."""
    return power(folder, "runtime_status") == "suspended"
