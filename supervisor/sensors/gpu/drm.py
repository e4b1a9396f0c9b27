"""AMD and Intel GPUs, from what the kernel's DRM drivers show in sysfs and in /proc/PID/fdinfo.

`power/runtime_status` comes first: nobody uses a GPU that is `suspended`, and it must stay so. Otherwise drm_helper reads, and
`drm_usage` judges. Opens of nodes in /dev/dri are seen in the folder, whatever the nodes' rights; a compositor that has its
device open opens nothing more.

The lent cards are those that `gpu.lend` names by PCI address, or else the one with most own memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from supervisor.linux.inotify import flags
from supervisor.linux.small_files import read_small
from supervisor.sensors.gpu.drm_usage import Look, busy_percent, judge, measured
from supervisor.sensors.gpu.ownership import GpuUse
from supervisor.sensors.gpu.pci_gpus import PciGpus, asleep, is_drm
from supervisor.sensors.gpu.poller import ABSENT, GpuPoller, Setup

NODE: Final = re.compile(r"(?:card|renderD)[0-9]+")
AGAIN_S: Final = 0.3  # until the second look, where one look does not show the load


class DrmSensor(GpuPoller[Look]):
    """The reading of the lent AMD or Intel GPUs; see GpuPoller."""

    name = "drm"
    driver = "GPU's"
    helper = "supervisor.sensors.gpu.drm_helper"
    answer = Look
    opens_nodes = False
    folder_events = flags.CREATE | flags.DELETE | flags.OPEN

    def __init__(self, setup: Setup) -> None:
        roots = (str(setup.sys_root), str(setup.proc_root), str(setup.dev_root))
        super().__init__(setup, setup.dev_root / "dri", roots)
        self._pci = PciGpus(setup.sys_root, is_drm)
        self._before: Look | None = None

    @property
    def lent(self) -> list[str]:
        """PCI addresses of the lent ones."""
        named = list(dict.fromkeys(pci.lower() for pci in self._settings.lend))
        return named or largest(self._pci.present())

    def describe(self) -> list[dict[str, Any]]:
        """One row per GPU for doctor and check-gpu: `pci, driver, lent, error, power, percent, used_gb, total_gb, processes
        [{pid, name, used_gb, whose}], hidden` (the number of hidden processes); sizes in GiB."""
        if self._asleep or not self._use.rows:
            return [
                {"pci": pci, "lent": pci in self.lent, "power": "suspended" if asleep(folder) else "active"}
                for pci, folder in self._pci.present().items()
            ]
        return list(self._use.rows)

    def _glance(self, now_s: float) -> bool:
        present, lent = self._pci.present(), self.lent
        missing = [pci for pci in lent if pci not in present]
        if missing or not present:
            self._asleep = False
            self._end_helper()
            self._cancel_timer()
            what = f"GPU {missing[0]} (gpu.lend in node.yaml) is not there; NVIDIA's are named by UUID" if missing else ""
            self._publish(GpuUse(None, what) if what else GpuUse(ABSENT), now_s, "DRM")
            return True
        if all(asleep(present[pci]) for pci in lent):
            self._publish_asleep(now_s)
            return True
        self._asleep = False
        return False

    def _take(self, answer: Look, now_s: float) -> None:
        before, self._before = (None if self._fresh else self._before), answer
        lent = self.lent
        cards = [card for card in answer.devices if card.pci in lent]
        if missing := [pci for pci in lent if pci not in {card.pci for card in cards}]:
            return self._failed(f"GPU {missing[0]} is not shown by its driver any more")
        try:
            loads = {card.pci: busy_percent(before, answer, card) for card in cards}
        except ValueError as error:
            return self._failed(str(error))
        percents = {pci: percent for pci, percent in loads.items() if percent is not None}
        use = self._judge(now_s, lambda known: judge(measured(before, answer), lent, percents, known))
        self._fresh = False
        if use.gpu is not None and not use.gpu.foreign and len(percents) < len(loads):
            return self._look_in(AGAIN_S)
        if use.gpu is None:
            self._use = use
            return self._failed(use.error)
        self._failures, self._looked_at_s = 0, now_s
        self._publish(use, now_s, "DRM")
        return self._look_later()

    def _is_node(self, name: str) -> bool:
        return NODE.fullmatch(name) is not None


def largest(present: Mapping[str, str]) -> list[str]:
    """The PCI address of the GPU with most own memory; among those that report none, one behind a bridge."""

    def rank(pci: str) -> tuple[int, bool, str]:
        size = read_small(f"{present[pci]}/mem_info_vram_total")
        return int(size) if size.isdecimal() else 0, ":00:" not in pci, pci

    return [max(present, key=rank)] if present else []
