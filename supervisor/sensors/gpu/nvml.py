"""NVIDIA GPUs: what others do on the lent ones, without keeping a sleeping GPU awake or the driver in use.

The sources, in this order:
1. PCI's sysfs: nobody uses a GPU whose `power/runtime_status` is `suspended`, so neither NVML nor a helper is needed. The
   reverse proves nothing, and neither does a missing PCI device (WSL2 has none).
2. nvml_helper, which alone loads NVML, and so finds out whether the library loads.
3. `nvml_usage`, which judges the answer. When to look is in `poller`.

The helper unloads NVML between looks that are far apart: a driver that is in use keeps the GPU awake, and its person from
resetting it or giving it to a virtual machine.

The first samples after NVML was loaded do not count, unless they show a process: without the persistence daemon the first
query loads the driver and shows 90 % and more.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, Final

from supervisor.linux.inotify import flags
from supervisor.linux.small_files import read_small
from supervisor.sensors.gpu.grant import Nvidia, render_nodes
from supervisor.sensors.gpu.nvml_usage import Answer, Device, judge
from supervisor.sensors.gpu.ownership import GpuUse
from supervisor.sensors.gpu.pci_gpus import PciGpus, asleep, driver, is_nvidia, power
from supervisor.sensors.gpu.poller import ABSENT, GpuPoller, Setup

LIBRARY: Final = "libnvidia-ml.so.1"
# A driver that was just loaded shows 90 percent and more. A first sample up to this value cannot be one of those, and counts.
WAKING_PERCENT: Final = 10
WAKING: Final = (1, 2, 4)  # pauses before the next sample counts, in units of `Setup.settle_s`


class NvmlSensor(GpuPoller[Answer]):
    """The reading of the lent NVIDIA GPUs; see GpuPoller."""

    name = "nvml"
    driver = "NVIDIA"
    helper = "supervisor.sensors.gpu.nvml_helper"
    answer = Answer
    opens_nodes = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, setup.dev_root)
        self._pci = PciGpus(setup.sys_root, is_nvidia)
        self._driver = ""
        self._absent_in: object = None  # the surroundings in which there was no GPU
        self._waking: list[int] = []
        self._seen: dict[str, Device] = {}  # by UUID, as last shown

    def describe(self) -> list[dict[str, Any]]:
        """One row per GPU for doctor and check-gpu: `uuid, name, lent, error, percent, used_gb, total_gb, reserved_gb,
        temperature_c, throttled, xid, mig, processes [{pid, name, kind, used_gb, whose}], driver, power`; sizes in GiB.
        Before the first answer, and while the GPUs are asleep, `pci, power` of each PCI device."""
        if self._asleep or not self._use.rows:
            present = self._pci.present().items()
            return [{"pci": pci, "power": power(folder, "runtime_status")} for pci, folder in present]
        return [row | {"driver": self._driver} for row in self._use.rows]

    def granted(self) -> Nvidia | None:
        """The lent ones, for a task; None: there are none. Reads small files, and wakes no GPU."""
        named, seen = tuple(self._settings.lend), self._seen
        if not named and (self._reading.value is None or not self._reading.value.present):
            return None
        known = {uuid: (device.minor, device.pci) for uuid, device in seen.items()}
        if not known or not known.keys() >= set(named):  # not looked at yet, because it sleeps
            known |= numbers(self._setup.proc_root)
        dev, pci = self._setup.dev_root, f"{self._setup.sys_root}/bus/pci/devices"
        nodes = []
        for uuid, (minor, address) in known.items():
            if not named or uuid in named or (len(known) == 1 and uuid == address):  # the only one, not opened yet
                nodes += [f"{dev}/nvidia{minor}", *render_nodes(str(dev), f"{pci}/{address}")]
                nodes += [f"{dev}/nvidia-caps"] if uuid in seen and seen[uuid].mig else []
        return Nvidia(named or tuple(seen) or None, tuple(nodes))

    # --- when to look

    def _glance(self, now_s: float) -> bool:
        pci = self._pci.present().values()
        # A device without driver, or of a virtual machine, may be suspended too.
        if pci and all(asleep(folder) and driver(folder) == "nvidia" for folder in pci):
            self._absent_in = None
            self._publish_asleep(now_s)
            return True
        self._asleep = False
        if self._absent_in is not None and self._absent_in == self._surroundings():
            self._publish(GpuUse(ABSENT), now_s, "NVML and PCI")
            return True
        self._absent_in = None
        return False

    def _surprised(self) -> None:
        self._absent_in = None

    # --- results

    def _take(self, answer: Answer, now_s: float) -> None:
        if not answer.library or not (answer.error or answer.devices):
            return self._take_absent(answer.library, now_s)
        self._driver = answer.driver
        if answer.error:
            self._end_helper()
            return self._failed(answer.error)
        self._seen = {device.uuid: device for device in answer.devices if device.uuid}
        use = self._judge(now_s, lambda known: judge(answer.devices, known))
        fresh, self._fresh = self._fresh, False
        if fresh:
            self._waking = list(WAKING)
        if self._waking and not (use.gpu is not None and use.gpu.foreign) and self._load(use, answer) > WAKING_PERCENT:
            return self._look_in(self._setup.settle_s * self._waking.pop(0))
        self._waking = []
        if use.gpu is None:
            self._use = use
            self._end_helper()  # a lost GPU can come back only after NVML is loaded again
            return self._failed(use.error)
        self._failures, self._absent_in = 0, None
        self._looked_at_s = now_s
        self._publish(use, now_s, "NVML" + (f" ({use.note})" if use.note else ""))
        return self._look_later()

    def _load(self, use: GpuUse, answer: Answer) -> float:
        """Without the task's, where that is known."""
        lent = self._settings.lend
        shown = (d.percent or 0 for d in answer.devices if not d.error and (not lent or d.uuid in lent))
        return use.gpu.percent if use.gpu is not None else max(shown, default=0)

    def _take_absent(self, library: bool, now_s: float) -> None:
        """The library does not load, or shows no GPU: an error if there is one by PCI or by its nodes."""
        self._end_helper()
        nodes = sorted({os.path.basename(node) for node in self._nodes()} - {"dxg"})
        if there := [*self._pci.present(), *nodes]:
            missing = "its driver does not show it" if library else f"{LIBRARY} does not load"
            return self._failed(f"there is an NVIDIA GPU ({there[0]}), but {missing}: install its driver")
        self._failures, self._follow_up = 0, []
        self._absent_in = self._surroundings()
        return self._publish(GpuUse(ABSENT), now_s, "NVML and PCI")

    def _failed(self, reason: str) -> None:
        self._absent_in = None
        super()._failed(reason)

    # --- nodes of the GPU in /dev, and where the library may appear

    def _watch_nodes(self) -> None:
        super()._watch_nodes()
        for node in self._nodes() - self._watcher.watched:
            self._watcher.add(node, flags.OPEN | flags.DELETE_SELF)  # fails while it is not readable: its opens are not seen

    def _is_node(self, name: str) -> bool:
        """nvidia0, nvidiactl, nvidia-uvm; dxg is WSL2's."""
        return name == "dxg" or (name.startswith("nvidia") and name not in ("nvidia-caps", "nvidia-modeset"))

    def _surroundings(self) -> object:
        """Everything that would change if a GPU, its driver or its library came; cheap to compare."""
        folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder] + ["/usr/lib/wsl/lib"]
        libraries = tuple(os.path.exists(f"{folder}/{LIBRARY}") for folder in folders)
        try:
            cache = os.stat("/etc/ld.so.cache").st_mtime_ns
        except OSError:
            cache = 0
        return tuple(self._pci.present()), self._nodes(), libraries, cache


def numbers(proc_root: Path) -> dict[str, tuple[int | None, str]]:
    """By UUID the number of each GPU's node and its PCI address, as the driver's own files tell without waking one. A GPU that
    nobody has opened yet has question marks for a UUID; it stands by its address."""
    found: dict[str, tuple[int | None, str]] = {}
    for folder in glob.glob(f"{proc_root}/driver/nvidia/gpus/*"):
        lines = read_small(f"{folder}/information").splitlines()
        known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if known.get("Device Minor", "").isdecimal():
            pci, uuid = os.path.basename(folder), known.get("GPU UUID", "?")
            found[pci if "?" in uuid else uuid] = int(known["Device Minor"]), pci
    return found
