"""AMD and Intel GPUs (R9, R10, R12), by what the kernel's DRM drivers tell in sysfs and in /proc/PID/fdinfo.

As with NVIDIA's: `power/runtime_status` first, since a GPU that is `suspended` is used by nobody and must sleep on (T15);
then the helper (drm_helper.py) reads; `drm_usage` judges; when it looks is in `poller`. Opens of nodes in
/dev/dri are seen in the folder, whoever may read them; a compositor that has its device open opens nothing more.

Which card is lent: those that `gpu.lend` names by PCI address; else the one with most memory of its own.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from states.observation import Gpu
from supervisor.linux.inotify import flags
from supervisor.sensors.gpu.drm_cards import Cards
from supervisor.sensors.gpu.drm_usage import Look, busy_percent, judge
from supervisor.sensors.gpu.ownership import Use
from supervisor.sensors.gpu.poller import ABSENT, GpuWatch, Setup

NODE: Final = re.compile(r"(?:card|renderD)[0-9]+")
AGAIN_S: Final = 0.3  # until the second look, where one look does not tell how busy a card is


class DrmSensor(GpuWatch):
    """The reading of the lent AMD or Intel GPUs; see GpuWatch."""

    name = "drm"
    driver = "GPU's"
    agent = "supervisor.sensors.gpu.drm_helper"
    opens_nodes = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, setup.dev_root / "dri", str(setup.sys_root), str(setup.proc_root), str(setup.dev_root))
        self._cards = Cards(setup.sys_root)
        self._before: Look | None = None
        self._asleep = False

    @property
    def lent(self) -> list[str]:
        """PCI addresses of the lent ones."""
        named = list(dict.fromkeys(pci.lower() for pci in self._settings.lend))
        return named or [pci for pci in [self._cards.largest()] if pci]

    def describe(self) -> list[dict[str, Any]]:
        """One row a GPU for doctor and check-gpu: `pci, driver, lent, error, power, percent, used_gb, total_gb, processes
        [{pid, name, used_gb, whose}], hidden` (how many processes cannot be looked into); sizes in GiB."""
        if self._asleep or not self._use.rows:
            return [
                {"pci": pci, "lent": pci in self.lent, "power": "suspended" if self._cards.asleep(folder) else "active"}
                for pci, folder in sorted(self._cards.there().items())
            ]
        return list(self._use.rows)

    # --- when to look

    def _glance(self, now_s: float) -> bool:
        there, lent = self._cards.there(), self.lent
        missing = [pci for pci in lent if pci not in there]
        if missing or not there:
            self._asleep = False
            self._end_helper()
            self._cancel_timer()
            what = f"GPU {missing[0]} (gpu.lend in node.yaml) is not there; NVIDIA's are named by UUID" if missing else ""
            self._publish(Use(None, what) if what else Use(ABSENT), now_s, "DRM")
            return True
        asleep = all(self._cards.asleep(there[pci]) for pci in lent)
        if asleep:
            if not self._asleep:
                self._end_helper()
                self._cancel_timer()
                self._failures, self._before = 0, None
            self._publish(Use(Gpu()), now_s, "PCI runtime_status (asleep)")
        elif self._asleep or (self._timer is None and not self._busy):
            self._look_in(0.0)
        self._asleep = asleep
        return asleep

    def _glanced(self, now_s: float) -> None:
        self._glance(now_s)

    def _question(self) -> bytes:
        return b"look\n"

    def _forget_looks(self) -> None:
        """Idle times go on through a suspend, the clock of the looks does not."""
        self._before = None

    def _surprised(self) -> None:
        """The glance that follows sees whatever is new."""

    # --- what came back

    def _take(self, line: bytes, now_s: float) -> None:
        try:
            look = msgspec.json.decode(line, type=Look)
        except msgspec.MsgspecError as error:
            return self._helper_failed(f"it answered nonsense ({error})")
        before, lent = self._before, self.lent
        self._before = look
        cards = [card for card in look.devices if card.pci in lent]
        if missing := [pci for pci in lent if pci not in {card.pci for card in cards}]:
            return self._failed(f"GPU {missing[0]} is not shown by its driver any more")
        try:
            told = {card.pci: busy_percent(before, look, card) for card in cards}
        except ValueError as error:
            return self._failed(str(error))
        percents = {pci: percent for pci, percent in told.items() if percent is not None}
        own = self._remember_own(now_s)
        lately = self._lately_own(now_s)
        use = judge(look.devices, lent, percents, own, lately, self._name_of, self._settings, self._unlisted)
        self._note_left(use, own)
        self._fresh = False
        if use.gpu is not None and not use.gpu.foreign and len(percents) < len(told):
            return self._look_in(AGAIN_S)
        self._failures, self._looked_at_s = 0, now_s
        self._publish(use, now_s, "DRM")
        return self._look_in(self._follow_up.pop(0) if self._follow_up else self._interval_s)

    # --- nodes of the GPU in /dev/dri

    def _watch_nodes(self) -> None:
        """The folder comes with the first driver, which may be loaded late."""
        if str(self._node_folder) not in self._watcher.watched:
            self._watcher.add(self._node_folder, self._folder_events)

    @property
    def _folder_events(self) -> int:
        return int(flags.CREATE | flags.DELETE | flags.OPEN)

    def _is_node(self, name: str) -> bool:
        return NODE.fullmatch(name) is not None
