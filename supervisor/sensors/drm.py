"""AMD and Intel GPUs (R9, R10, R12), by what the kernel's DRM drivers tell in sysfs and in /proc/PID/fdinfo.

As with NVIDIA's: `power/runtime_status` first, since a GPU that is `suspended` is used by nobody and must sleep on (T15);
then the helper (supervisor/agents/drm.py) reads; `drm_use` judges; when it looks is in `gpu_watch`. Opens of nodes in
/dev/dri are seen in the folder, whoever may read them; a compositor that has its device open opens nothing more.

Which card is lent: those that `gpu.lend` names by PCI address; else the one with most memory of its own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from inotify_simple import flags

from states.observation import Gpu
from supervisor.clock import Clock
from supervisor.sensors.drm_cards import Cards
from supervisor.sensors.drm_use import Look, busy_percent, judge
from supervisor.sensors.gpu_use import Use
from supervisor.sensors.gpu_watch import ABSENT, GpuWatch, suspended_s
from supervisor.sensors.process import Name, name_of
from supervisor.settings import GpuSettings

AGENT: Final = Path(__file__).resolve().parents[1] / "agents" / "drm.py"
NODE: Final = re.compile(r"(?:card|renderD)[0-9]+")
AGAIN_S: Final = 0.3  # until the second look, where one look does not tell how busy a card is
SLOW_S: Final = 5.0  # a GPU that wakes up holds reads up


class DrmSensor(GpuWatch):
    """The reading of the lent AMD or Intel GPUs; see GpuWatch."""

    name = "drm"

    def __init__(
        self,
        clock: Clock,
        settings: GpuSettings,
        own_pids: Callable[[], frozenset[int]],
        *,
        proc_root: Path = Path("/proc"),
        sys_root: Path = Path("/sys"),
        dev_root: Path = Path("/dev"),
        max_age_s: float = 30.0,
        deadline_s: float = 3.0,
        suspended_s: Callable[[], float] = suspended_s,
    ) -> None:
        super().__init__(
            clock, settings, own_pids, agent=AGENT, arguments=(str(sys_root), str(proc_root), str(dev_root)),
            driver="GPU's", nodes=dev_root / "dri", proc_root=proc_root, max_age_s=max_age_s, deadline_s=deadline_s,
            first_deadline_s=deadline_s + SLOW_S, suspended_s=suspended_s,
        )  # fmt: skip
        self._cards = Cards(sys_root)
        self._before: Look | None = None
        self._asleep = False

    @property
    def lent(self) -> list[str]:
        """PCI addresses of the lent ones."""
        return [pci.lower() for pci in self._settings.lend] or [pci for pci in [self._cards.largest()] if pci]

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
        if len(cards) < len(lent):
            return self._failed(f"GPU {lent[0]} is not shown by its driver any more")
        percents: dict[str, float] = {}
        try:
            told = {card.pci: busy_percent(before, look, card) for card in cards}
        except ValueError as error:
            return self._failed(str(error))
        percents = {pci: percent for pci, percent in told.items() if percent is not None}
        own = self._remember_own(now_s)
        use = judge(look.devices, lent, percents, own, self._lately_own(now_s), self._name_of, self._settings)
        self._fresh = False
        if use.gpu is not None and not use.gpu.foreign and len(percents) < len(told):
            return self._look_in(AGAIN_S)
        self._failures, self._looked_at_s = 0, now_s
        self._publish(use, now_s, "DRM")
        return self._look_in(self._follow_up.pop(0) if self._follow_up else self._interval_s)

    def _name_of(self, pid: int) -> Name:
        return name_of(self._proc_root, pid)

    # --- nodes of the GPU in /dev/dri

    def _watch_nodes(self) -> None:
        """The folder comes with the first driver, which may be loaded late."""
        if self._inotify is not None and self._folder_wd == -1:
            with contextlib.suppress(OSError):
                self._folder_wd = self._inotify.add_watch(self._node_folder, self._folder_events)

    @property
    def _folder_events(self) -> int:
        return int(flags.CREATE | flags.DELETE | flags.OPEN)

    def _is_node(self, name: str) -> bool:
        return NODE.fullmatch(name) is not None
