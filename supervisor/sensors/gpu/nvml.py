"""NVIDIA GPUs (R9, R10, R12): what others do on the lent ones, without keeping a sleeping GPU awake.

Who knows what, in this order:
1. PCI's sysfs: a GPU whose `power/runtime_status` is `suspended` is used by nobody; no NVML then, and no helper. The
   reverse proves nothing, and a missing PCI device neither (WSL2 has none).
2. the helper (supervisor/sensors/gpu/nvml_helper.py), which alone loads NVML; whether the library loads is its finding.
3. `nvml_usage` judges what it said.
When it looks, and what becomes of a helper that hangs, is in `poller`.

A GPU that may sleep (`power/control` is `auto`) and is quiet gets the chance to: the helper is ended for up to
`NAP_S`, since each query keeps the GPU awake for some 20 s. If it stays awake for another reason twice, that is left
for ten minutes.

The first sample of a new helper is not believed, unless it shows somebody: without the persistence daemon the first
query loads the driver and shows 90 % and more.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from states.observation import NEVER, Gpu, Reading
from supervisor.linux.inotify import flags
from supervisor.sensors.gpu.nvml_usage import Answer, Device, judge
from supervisor.sensors.gpu.ownership import Use
from supervisor.sensors.gpu.poller import ABSENT, GpuWatch, Setup

LIBRARY: Final = "libnvidia-ml.so.1"
NVIDIA: Final = "0x10de"
DISPLAY_CLASS: Final = "0x03"  # VGA, 3D and other display controllers

NAP_S: Final = 25.0
NAP_TRIES: Final = 2
NO_NAP_S: Final = 600.0
# A driver that has just been loaded shows 90 percent and more at first (T14). A first sample that is no higher than this is
# none of those, and is believed at once: it can only err upwards.
WAKING_PERCENT: Final = 10


class PciGpus:
    """The NVIDIA display devices on the PCI bus, from sysfs: reading it wakes no device."""

    def __init__(self, sys_root: Path) -> None:
        self._folder = sys_root / "bus/pci/devices"
        self._kind: dict[str, bool] = {}

    def names(self) -> tuple[str, ...]:
        """PCI addresses, `0000:01:00.0`."""
        try:
            there = set(os.listdir(self._folder))
        except OSError:
            there = set()
        self._kind = {name: self._kind[name] if name in self._kind else self._is_gpu(name) for name in there}
        return tuple(sorted(name for name, gpu in self._kind.items() if gpu))

    def power(self, name: str, what: str) -> str:
        """`runtime_status` or `control` of a device; empty where there is no such thing."""
        return _text(self._folder / name / "power" / what)

    def asleep(self, name: str) -> bool:
        """The NVIDIA driver has put it to sleep; one without driver, or lent to a virtual machine, may sleep too."""
        return (
            self.power(name, "runtime_status") == "suspended"
            and os.path.basename(os.path.realpath(self._folder / name / "driver")) == "nvidia"
        )

    def _is_gpu(self, name: str) -> bool:
        folder = self._folder / name
        return _text(folder / "vendor") == NVIDIA and _text(folder / "class").startswith(DISPLAY_CLASS)


class NvmlSensor(GpuWatch):
    """The reading of the lent NVIDIA GPUs; see GpuWatch."""

    name = "nvml"
    driver = "NVIDIA"
    agent = "supervisor.sensors.gpu.nvml_helper"
    opens_nodes = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, setup.dev_root)
        self._pci = PciGpus(setup.sys_root)
        self._settle_s = setup.settle_s
        self._driver = ""
        self._absent_in: object = None  # the surroundings in which there was no GPU
        self._asleep = False
        self._naps, self._no_nap_until_s, self._napping = 0, NEVER, False

    def describe(self) -> list[dict[str, Any]]:
        """One row a GPU for doctor and check-gpu: `uuid, name, lent, error, percent, used_gb, total_gb, reserved_gb,
        temperature_c, throttled, xid, mig, processes [{pid, name, kind, used_gb, whose}], driver, power`; sizes in GiB.
        Before the first answer, and for a GPU that is asleep, the row of the PCI device: `pci, power`."""
        if self._asleep or not self._use.rows:
            return [{"pci": name, "power": self._pci.power(name, "runtime_status")} for name in self._pci.names()]
        return [row | {"driver": self._driver} for row in self._use.rows]

    # --- when to look

    @property
    def _resting(self) -> bool:
        """An open would end the nap; where opens are not seen, nothing but a look may."""
        nodes = {str(self._node_folder / name) for name in self._nodes()}
        return self._napping and self._watcher.is_open and nodes <= self._watcher.watched

    def _glance(self, now_s: float) -> bool:
        pci = self._pci.names()
        asleep = bool(pci) and all(self._pci.asleep(name) for name in pci)
        if asleep and not self._asleep:
            self._end_helper()
            self._cancel_timer()
            self._napping, self._naps, self._failures, self._absent_in = False, 0, 0, None
            self._publish(Use(Gpu(), rows=()), now_s, "PCI runtime_status (asleep)")
        elif self._asleep and not asleep:
            self._asleep = False
            self._look_in(0.0)
        self._asleep = asleep
        return asleep

    def _glanced(self, now_s: float) -> None:
        absent = not self._glance(now_s) and self._absent_in is not None
        if self._asleep or (absent and self._absent_in == self._surroundings()):
            value = Gpu() if self._asleep else ABSENT
            self._reading = Reading(value, "", self._reading.source, now_s)
        elif absent:
            self._absent_in = None
            self._look_in(0.0)

    def _question(self) -> bytes:
        if self._napping:
            self._napping = False
            self._naps += 1
            if self._naps >= NAP_TRIES:
                self._naps, self._no_nap_until_s = 0, self._clock.now_s() + NO_NAP_S
        return b"look\n"

    def _forget_looks(self) -> None:
        """Each look stands for itself."""

    def _surprised(self) -> None:
        self._absent_in = None

    # --- what came back

    def _take(self, line: bytes, now_s: float) -> None:
        try:
            answer = msgspec.json.decode(line, type=Answer)
        except msgspec.MsgspecError as error:
            return self._helper_failed(f"it answered nonsense ({error})")
        if not answer.library or not (answer.error or answer.devices):
            self._end_helper()
            if there := [*self._pci.names(), *(node for node in self._nodes() if node != "dxg")]:
                missing = f"{LIBRARY} does not load" if not answer.library else "its driver does not show it"
                return self._failed(f"there is an NVIDIA GPU ({there[0]}), but {missing}: install its driver")
            self._failures, self._follow_up = 0, []
            self._absent_in = self._surroundings()
            return self._publish(Use(ABSENT), now_s, "NVML and PCI")
        self._driver = answer.driver
        if answer.error:
            self._end_helper()
            return self._failed(answer.error)
        return self._judge(answer.devices, now_s)

    def _judge(self, devices: tuple[Device, ...], now_s: float) -> None:
        own = self._remember_own(now_s)
        use = judge(devices, own, self._lately_own(now_s), self._name_of, self._settings, self._unlisted)
        self._note_left(use, own)
        if use.gpu is None:
            self._use = use
            self._end_helper()  # NVML must be loaded anew before a lost GPU can come back
            return self._failed(use.error)
        self._failures, self._absent_in = 0, None
        self._looked_at_s = now_s
        fresh, self._fresh = self._fresh, False
        if fresh and not use.gpu.foreign and use.gpu.percent > WAKING_PERCENT:
            return self._look_in(self._settle_s)
        self._publish(use, now_s, "NVML" + (f" ({use.note})" if use.note else ""))
        if self._follow_up:
            return self._look_in(self._follow_up.pop(0))
        quiet = use.gpu.percent == 0 and not use.gpu.foreign and not own
        if quiet and now_s >= self._no_nap_until_s and self._may_sleep():
            self._end_helper()
            self._napping = True
            return self._look_in(NAP_S)
        return self._look_in(self._interval_s)

    def _may_sleep(self) -> bool:
        pci = self._pci.names()
        return bool(pci) and all(
            self._pci.power(name, "control") == "auto" and self._pci.power(name, "runtime_status") for name in pci
        )

    def _failed(self, reason: str) -> None:
        self._absent_in, self._napping = None, False
        super()._failed(reason)

    # --- nodes of the GPU in /dev, and where the library may appear

    def _watch_nodes(self) -> None:
        nodes = {str(self._node_folder / name) for name in self._nodes()}
        for node in nodes - self._watcher.watched:
            self._watcher.add(node, flags.OPEN | flags.DELETE_SELF)  # fails while it is not readable: its opens are not seen

    def _is_node(self, name: str) -> bool:
        """nvidia0, nvidiactl, nvidia-uvm; dxg is WSL2's."""
        return name == "dxg" or (name.startswith("nvidia") and name not in ("nvidia-caps", "nvidia-modeset"))

    def _surroundings(self) -> object:
        """All that would be different if a GPU, its driver or its library had come; cheap to compare."""
        folders = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
        folders += [Path("/usr/lib/wsl/lib")]
        libraries = tuple((folder / LIBRARY).exists() for folder in folders)
        try:
            cache = os.stat("/etc/ld.so.cache").st_mtime_ns
        except OSError:
            cache = 0
        return self._pci.names(), tuple(self._nodes()), libraries, cache


def _text(path: Path) -> str:
    """A small file's text; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
