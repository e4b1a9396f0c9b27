"""Which AMD and Intel GPUs there are, from sysfs: reading it wakes none. Light, since every machine looks once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

DRIVERS: Final = ("amdgpu", "i915", "xe")
CARD: Final = re.compile(r"card[0-9]+")


class Cards:
    """The AMD and Intel GPUs of this machine."""

    def __init__(self, sys_root: Path) -> None:
        self._folder = sys_root / "class/drm"
        self._seen: dict[str, Path | None] = {}

    def there(self) -> dict[str, Path]:
        """Their folders by PCI address."""
        try:
            names = {name for name in os.listdir(self._folder) if CARD.fullmatch(name)}
        except OSError:
            names = set()
        self._seen = {name: self._seen.get(name) or self._device(name) for name in names}
        return {folder.name: folder for folder in self._seen.values() if folder is not None}

    def largest(self) -> str:
        """The address of the one with most memory of its own; of those that do not say, one behind a bridge."""

        def rank(item: tuple[str, Path]) -> tuple[int, bool, str]:
            pci, folder = item
            try:
                size = int((folder / "mem_info_vram_total").read_text())
            except (OSError, ValueError):
                size = 0
            return size, ":00:" not in pci, pci

        return max(self.there().items(), key=rank, default=("", self._folder))[0]

    @staticmethod
    def asleep(folder: Path) -> bool:
        """Its driver has put it to sleep."""
        try:
            return (folder / "power/runtime_status").read_text().strip() == "suspended"
        except OSError:
            return False

    def _device(self, name: str) -> Path | None:
        folder = Path(os.path.realpath(self._folder / name / "device"))
        return folder if os.path.basename(os.path.realpath(folder / "driver")) in DRIVERS else None
