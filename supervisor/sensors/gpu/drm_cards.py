"""Finds the AMD and Intel GPUs in sysfs, without waking any. It imports little, because every machine uses it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from supervisor.linux.small_files import read_small

if TYPE_CHECKING:
    from pathlib import Path

DRIVERS: Final = ("amdgpu", "i915", "xe")
CARD: Final = re.compile(r"card[0-9]+")


class Cards:
    """The AMD and Intel GPUs of this machine."""

    def __init__(self, sys_root: Path | str) -> None:
        self._folder = f"{sys_root}/class/drm"
        self._folders: dict[str, str] = {}  # of the devices, by card; empty: another driver's

    def present(self) -> dict[str, str]:
        """Their sysfs folders by PCI address."""
        try:
            names = {name for name in os.listdir(self._folder) if CARD.fullmatch(name)}
        except OSError:
            names = set()
        self._folders = {name: self._folders.get(name) or self._device(name) for name in sorted(names)}
        return {os.path.basename(folder): folder for folder in self._folders.values() if folder}

    def largest(self) -> str:
        """The address of the one with most own memory; among those that report none, one behind a bridge."""

        def rank(item: tuple[str, str]) -> tuple[int, bool, str]:
            pci, folder = item
            size = read_small(f"{folder}/mem_info_vram_total")
            return int(size) if size.isdecimal() else 0, ":00:" not in pci, pci

        return max(self.present().items(), key=rank, default=("", ""))[0]

    @staticmethod
    def asleep(folder: str) -> bool:
        """Whether its driver has suspended it."""
        return read_small(f"{folder}/power/runtime_status") == "suspended"

    def _device(self, name: str) -> str:
        folder = os.path.realpath(f"{self._folder}/{name}/device")
        return folder if os.path.basename(os.path.realpath(f"{folder}/driver")) in DRIVERS else ""
