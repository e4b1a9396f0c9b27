"""NVIDIA GPUs (R9, R10, R12): what others do on the lent ones, without keeping a sleeping GPU awake.

Who knows what, in this order:
1. PCI's sysfs: a GPU whose `power/runtime_status` is `suspended` is used by nobody; no NVML then, and no helper. The
   reverse proves nothing, and a missing PCI device neither (WSL2 has none).
2. the helper (supervisor/agents/gpu.py), which alone loads NVML; whether the library loads is its finding. It lives
   while there is something to look at. One that hangs is killed and not waited for; while a killed one is still there
   no second one is started, and the reading is an error that says so.
3. `gpu_use` judges what it said.

When it looks: at the start, every `demand` seconds (in RUNNING `gpu.look_interval_sec`), else only just before the
reading would be too old, and at once when somebody opens a node of the GPU; a process makes its context only after the
open, so three further looks follow. Opens while our own call runs are taken for ours. What costs nothing (asleep,
absent) is looked at by `latest` itself and needs no timer.

A GPU that may sleep (`power/control` is `auto`) and is quiet gets the chance to: the helper is ended for up to
`NAP_S`, since each query keeps the GPU awake for some 20 s. If it stays awake for another reason twice, that is left
for ten minutes.

The first sample of a new helper is not believed, unless it shows somebody: without the persistence daemon the first
query loads the driver and shows 90 % and more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from inotify_simple import INotify, flags

from states.observation import NEVER, Gpu, Reading
from supervisor.clock import Clock
from supervisor.sensors.base import Wake
from supervisor.sensors.gpu_use import Answer, Device, Use, judge
from supervisor.sensors.helper import Helper
from supervisor.sensors.process import Name, name_of
from supervisor.settings import GpuSettings

AGENT: Final = Path(__file__).resolve().parents[1] / "agents" / "gpu.py"
LIBRARY: Final = "libnvidia-ml.so.1"
NVIDIA: Final = "0x10de"
DISPLAY_CLASS: Final = "0x03"  # VGA, 3D and other display controllers

FOLLOW_UP_S: Final = (0.25, 0.75, 1.5)  # looks after an open, each so long after the one before
NAP_S: Final = 25.0
NAP_TRIES: Final = 2
NO_NAP_S: Final = 600.0
BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 25.0)
REMNANT_S: Final = 30.0  # how long a pid of the task counts as lately ours
START_S: Final = 2.0  # what `start` waits for a first reading

ABSENT: Final = Gpu(present=False)


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


class NvmlSensor:
    """The reading of the lent NVIDIA GPUs.

    Args:
        clock: the clock.
        settings: `gpu` of node.yaml.
        own_pids: the processes of the node's task now.
        max_age_s: how old a reading may be before it proves nothing.
        deadline_s: seconds within which NVML must answer; the first call of a helper, which may load the driver, has
            `first_deadline_s`.
        settle_s: seconds between a new helper's first look and the first one that is believed.
    """

    name = "nvml"

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
        first_deadline_s: float = 10.0,
        settle_s: float = 0.2,
    ) -> None:
        self._clock, self._settings, self._own_pids = clock, settings, own_pids
        self._proc_root, self._dev_root = proc_root, dev_root
        self._pci = PciGpus(sys_root)
        self._rest_s = max_age_s * 5 / 6
        self._deadline_s, self._first_deadline_s, self._settle_s = deadline_s, first_deadline_s, settle_s
        self._interval_s = self._rest_s
        self._wake: Wake = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._known = asyncio.Event()
        self._reading: Reading[Gpu] = Reading(error="not looked at yet", source="NVML")
        self._use = Use(None)
        self._driver = ""
        self._helper: Helper | None = None
        self._fresh = True  # the helper has not answered yet
        self._left: Helper | None = None
        self._failures = 0
        self._follow_up: list[float] = []
        self._absent_in: object = None  # the surroundings in which there was no GPU
        self._asleep = False
        self._naps, self._no_nap_until_s, self._napping = 0, NEVER, False
        self._looked_at_s = NEVER
        self._lately: dict[int, float] = {}
        self._inotify: INotify | None = None
        self._watched: dict[int, str] = {}
        self._dev_wd = -1

    # --- the sensor's face

    async def start(self, wake: Wake) -> None:
        """Begin to watch. Returns with the first reading, or after two seconds without one."""
        self._loop, self._wake = asyncio.get_running_loop(), wake
        if self._settings.presence == "none":
            return
        self._watch()
        self._look()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._known.wait(), START_S)

    async def stop(self) -> None:
        """Let go of everything; a helper that cannot be killed is left behind."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.end()
        for one in (helper, self._left):
            if one is not None and not await one.wait(0.5):
                one.kill()
                await one.wait(0.5)
                one.forget()
        self._left = None

    def latest(self, now_s: float) -> Reading[Gpu]:
        """What is known now; looks itself at what costs nothing."""
        if self._settings.presence == "none":
            return Reading(ABSENT, "", "gpu.presence: none", now_s)
        self._remember_own(now_s)
        if self._loop is not None and not self._busy:
            absent = not self._glance(now_s) and self._absent_in is not None
            if self._asleep or (absent and self._absent_in == self._surroundings()):
                self._reading = Reading(self._reading.value, "", self._reading.source, now_s)
            elif absent:
                self._absent_in = None
                self._look_in(0.0)
        return self._reading

    def demand(self, interval_s: float | None) -> None:
        """How often to look, in seconds; None: only so often that the reading does not get too old."""
        interval_s = self._rest_s if interval_s is None else min(interval_s, self._rest_s)
        if interval_s == self._interval_s:
            return
        self._interval_s = interval_s
        if self._timer is not None and not self._fresh and not self._failures and not self._napping:
            self._look_in(max(0.0, self._looked_at_s + interval_s - self._clock.now_s()))

    async def refresh(self, timeout_s: float) -> Reading[Gpu]:
        """Look now and wait for the answer, at most `timeout_s` seconds; for checks and a probe after resume."""
        self._known.clear()
        self._look()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._known.wait(), timeout_s)
        return self.latest(self._clock.now_s())

    def describe(self) -> list[dict[str, Any]]:
        """One row a GPU for doctor and check-gpu: `uuid, name, lent, error, percent, used_gb, total_gb, reserved_gb,
        temperature_c, mig, processes [{pid, name, kind, used_gb, whose}], driver, power`; sizes in GiB. Before the first
        answer, and for a GPU that is asleep, the row of the PCI device: `pci, power`."""
        if self._asleep or not self._use.rows:
            return [{"pci": name, "power": self._pci.power(name, "runtime_status")} for name in self._pci.names()]
        return [row | {"driver": self._driver} for row in self._use.rows]

    # --- when to look

    @property
    def _busy(self) -> bool:
        return self._helper is not None and self._helper.asked

    def _glance(self, now_s: float) -> bool:
        """Whether every NVIDIA GPU is asleep, which proves that nobody uses one; reads sysfs only."""
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

    def _look(self) -> None:
        """Ask the helper, if there is something to ask, and if it is not busy already."""
        if self._loop is None or self._busy:
            return
        self._cancel_timer()
        now_s = self._clock.now_s()
        if self._glance(now_s):
            self._known.set()
            if self._follow_up:
                self._look_in(self._follow_up.pop(0))
            return
        self._cancel_timer()
        if self._napping:
            self._napping = False
            self._naps += 1
            if self._naps >= NAP_TRIES:
                self._naps, self._no_nap_until_s = 0, now_s + NO_NAP_S
        if self._left is not None and not self._left.gone:
            if self._left.stuck:
                self._failed(f"the NVIDIA driver hangs: process {self._left.pid} cannot be killed; reboot if it stays so")
            else:
                self._look_in(0.05)
            return
        if self._helper is None:
            self._fresh = True
            try:
                self._helper = Helper(
                    [sys.executable, "-I", str(AGENT), str(os.getpid())], self._answered, self._helper_failed
                )
            except OSError as error:
                self._failed(f"the GPU helper cannot be started: {error.strerror}")
                return
        self._helper.ask(b"look\n", self._first_deadline_s if self._fresh else self._deadline_s)

    def _look_in(self, delay_s: float) -> None:
        self._cancel_timer()
        if self._loop is not None:
            self._timer = self._loop.call_later(delay_s, self._look)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_helper(self) -> None:
        if self._helper is not None:
            self._helper.end()
            self._left, self._helper = self._helper, None

    # --- what came back

    def _answered(self, line: bytes) -> None:
        self._drain_inotify()
        self._watch_nodes()
        now_s = self._clock.now_s()
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
        lately = {pid for pid, seen_s in self._lately.items() if now_s - seen_s <= REMNANT_S}
        use = judge(devices, own, lately, self._name_of, self._settings)
        if use.gpu is None:
            self._use = use
            self._end_helper()  # NVML must be loaded anew before a lost GPU can come back
            return self._failed(use.error)
        self._failures, self._absent_in = 0, None
        self._looked_at_s = now_s
        fresh, self._fresh = self._fresh, False
        if fresh and not use.gpu.foreign:
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

    def _helper_failed(self, reason: str) -> None:
        if self._helper is not None:
            self._helper.kill()
            self._left, self._helper = self._helper, None
        hung = self._left is not None and self._left.hung
        self._failed(f"the NVIDIA driver hangs: {reason}" if hung else f"the GPU helper failed: {reason}")

    def _failed(self, reason: str) -> None:
        """Publish the error, and try again later, later each time."""
        self._absent_in, self._follow_up, self._napping = None, [], False
        delay_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        rows = self._use.rows if self._use.error == reason else ()
        self._publish(Use(None, reason, rows=rows), self._clock.now_s(), "NVML")
        self._look_in(delay_s)

    def _publish(self, use: Use, now_s: float, source: str) -> None:
        before = self._reading
        self._use = use
        self._reading = Reading(use.gpu, use.error, source, now_s)
        self._known.set()
        if (before.value, before.error) != (use.gpu, use.error):
            self._wake()

    # --- processes

    def _remember_own(self, now_s: float) -> frozenset[int]:
        own = self._own_pids()
        if own or self._lately:
            self._lately = {pid: seen_s for pid, seen_s in self._lately.items() if now_s - seen_s <= REMNANT_S}
            self._lately |= dict.fromkeys(own, now_s)
        return own

    def _name_of(self, pid: int) -> Name:
        return name_of(self._proc_root, pid)

    # --- nodes of the GPU in /dev, and where the library may appear

    def _watch(self) -> None:
        """Watch for opens and for new nodes. Where inotify is not to be had, looks come by their interval alone."""
        with contextlib.suppress(OSError):
            self._inotify = INotify(nonblocking=True)
            self._dev_wd = self._inotify.add_watch(self._dev_root, flags.CREATE)
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._touched)
        self._watch_nodes()

    def _watch_nodes(self) -> None:
        if self._inotify is None:
            return
        for name in self._nodes():
            if name not in self._watched.values():
                with contextlib.suppress(OSError):  # not readable (yet): its opens are not seen
                    wd = self._inotify.add_watch(self._dev_root / name, flags.OPEN | flags.DELETE_SELF)
                    self._watched[wd] = name

    def _nodes(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._dev_root) if _is_node(name))
        except OSError:
            return []

    def _touched(self) -> None:
        """A node was opened or made: look now, and again, since a context comes after the open."""
        busy = self._busy
        if not self._drain_inotify() or busy or self._follow_up:
            return
        self._follow_up = list(FOLLOW_UP_S)
        self._absent_in = None
        self._watch_nodes()
        self._look()
        self._wake()

    def _drain_inotify(self) -> bool:
        """Whether an event since the last time concerns a GPU."""
        seen = False
        if self._inotify is not None:
            with contextlib.suppress(OSError):
                for event in self._inotify.read(timeout=0):
                    if event.mask & (flags.IGNORED | flags.DELETE_SELF):
                        self._watched.pop(event.wd, None)
                        continue
                    seen = seen or event.wd != self._dev_wd or _is_node(event.name)
        return seen

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


def _is_node(name: str) -> bool:
    """nvidia0, nvidiactl, nvidia-uvm; dxg is WSL2's."""
    return name == "dxg" or (name.startswith("nvidia") and name not in ("nvidia-caps", "nvidia-modeset"))


def _text(path: Path) -> str:
    """A small file's text; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
