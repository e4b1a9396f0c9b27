"""NVIDIA GPUs: what others do on the lent ones, without keeping a sleeping GPU awake.

The sources, in this order:
1. PCI's sysfs: nobody uses a GPU whose `power/runtime_status` is `suspended`, so neither NVML nor a helper is needed. The
   reverse proves nothing, and neither does a missing PCI device (WSL2 has none).
2. nvml_helper, which alone loads NVML, and so finds out whether the library loads.
3. `nvml_usage`, which judges the answer. When to look is in `poller`.

A GPU that may sleep (`power/control` is `auto`) and is quiet gets the chance to: the helper is ended for up to `NAP_S`, because
each query keeps the GPU awake for some 20 s. If it stays awake twice, for another reason, it is left so for ten minutes.

The first sample of a new helper does not count, unless it shows a process: without the persistence daemon the first query loads
the driver and shows 90 % and more.
"""

from __future__ import annotations

import os
from typing import Any, Final

from states.observation import NEVER
from supervisor.linux.inotify import flags
from supervisor.sensors.gpu.nvml_usage import Answer, judge
from supervisor.sensors.gpu.ownership import GpuUse
from supervisor.sensors.gpu.pci_gpus import PciGpus, asleep, driver, is_nvidia, power
from supervisor.sensors.gpu.poller import ABSENT, GpuPoller, Setup

LIBRARY: Final = "libnvidia-ml.so.1"
NAP_S: Final = 25.0
NAP_TRIES: Final = 2
NO_NAP_S: Final = 600.0
# A driver that was just loaded shows 90 percent and more. A first sample up to this value cannot be one of those, and counts.
WAKING_PERCENT: Final = 10


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
        self._naps, self._no_nap_until_s, self._napping = 0, NEVER, False

    def describe(self) -> list[dict[str, Any]]:
        """One row per GPU for doctor and check-gpu: `uuid, name, lent, error, percent, used_gb, total_gb, reserved_gb,
        temperature_c, throttled, xid, mig, processes [{pid, name, kind, used_gb, whose}], driver, power`; sizes in GiB.
        Before the first answer, and while the GPUs are asleep, `pci, power` of each PCI device."""
        if self._asleep or not self._use.rows:
            present = self._pci.present().items()
            return [{"pci": pci, "power": power(folder, "runtime_status")} for pci, folder in present]
        return [row | {"driver": self._driver} for row in self._use.rows]

    # --- when to look

    @property
    def _resting(self) -> bool:
        """While opens are seen, an open ends the nap; else only a look may."""
        return self._napping and self._watcher.is_open and self._nodes() <= self._watcher.watched

    def _glance(self, now_s: float) -> bool:
        pci = self._pci.present().values()
        # A device without driver, or of a virtual machine, may be suspended too.
        if pci and all(asleep(folder) and driver(folder) == "nvidia" for folder in pci):
            if not self._asleep:
                self._napping, self._naps, self._absent_in = False, 0, None
            self._publish_asleep(now_s)
            return True
        self._asleep = False
        if self._absent_in is not None and self._absent_in == self._surroundings():
            self._publish(GpuUse(ABSENT), now_s, "NVML and PCI")
            return True
        self._absent_in = None
        return False

    def _before_look(self) -> None:
        if self._napping:
            self._napping = False
            self._naps += 1
            if self._naps >= NAP_TRIES:
                self._naps, self._no_nap_until_s = 0, self._clock.now_s() + NO_NAP_S

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
        use = self._judge(now_s, lambda known: judge(answer.devices, known))
        if use.gpu is None:
            self._use = use
            self._end_helper()  # a lost GPU can come back only after NVML is loaded again
            return self._failed(use.error)
        self._failures, self._absent_in = 0, None
        self._looked_at_s = now_s
        fresh, self._fresh = self._fresh, False
        if fresh and not use.gpu.foreign and use.gpu.percent > WAKING_PERCENT:
            return self._look_in(self._setup.settle_s)
        self._publish(use, now_s, "NVML" + (f" ({use.note})" if use.note else ""))
        if self._follow_up:
            return self._look_in(self._follow_up.pop(0))
        quiet = use.gpu.percent == 0 and not use.gpu.foreign and not self._setup.own_pids()
        if quiet and now_s >= self._no_nap_until_s and self._may_sleep():
            self._end_helper()
            self._napping = True
            return self._look_in(NAP_S)
        return self._look_in(self._interval_s)

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

    def _may_sleep(self) -> bool:
        pci = self._pci.present().values()
        return bool(pci) and all(power(folder, "control") == "auto" and power(folder, "runtime_status") for folder in pci)

    def _failed(self, reason: str) -> None:
        self._absent_in, self._napping = None, False
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
