"""The machine itself: the CPU that others use, and whether the machine is fit to work: power, memory, heat, working hours.

Where node.yaml asks for it, also programs beside which nothing may run, memory pressure, a metered network, and a site's own
checks. Whether gamemode sees a game is known only on the person's own bus, which the daemon may not use: the session agent
reports it among the desktop's inhibitors.

There is no timer: samples are taken when the tick asks, and a CPU percentage is the average since an earlier sample, so rare
ticks still get a correct value. All of it takes well under a millisecond. Batteries and temperatures, which may be slower on
some machines, are read at most every five seconds.

Temperatures are not read through psutil, which reads every one: that wakes sleeping graphics cards, and includes inputs that
are not connected. Only the processor's own sensors count.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

import psutil

from states.formatting import duration, number
from states.observation import NEVER, Cpu, Host, Reading
from supervisor.config.schema import HostSettings
from supervisor.linux.clock import Clock
from supervisor.linux.text import error_text
from supervisor.sensors.base import Wake
from supervisor.sensors.host.findings import FIT, Findings, merge
from supervisor.sensors.host.metered import Metered
from supervisor.sensors.host.power import Power, UPower, both, power, read_text
from supervisor.sensors.host.programs import Programs
from supervisor.sensors.host.site_checks import SiteChecks

GIB: Final = 2**30
CPU_WINDOW_S: Final = 10.0  # CPU use is averaged over this time: a short burst stops nothing
MIN_WINDOW_S: Final = 0.5  # in a shorter one the steps of the counters dominate
SAMPLES: Final = 40  # the most in one window
SLOW_S: Final = 5.0  # between two reads of batteries and temperatures
CPU_CHIPS: Final = ("coretemp", "k8temp", "k10temp", "zenpower", "via_cputemp", "soc_thermal")
COOL_C: Final = 5.0
PLAUSIBLE_C: Final = (-40.0, 150.0)


@dataclass(frozen=True, slots=True)
class CpuSample:
    """Seconds of all processors since boot, and the own task's so far; `at_s` is CLOCK_BOOTTIME."""

    at_s: float
    total_s: float
    idle_s: float
    own_s: float


class CpuMeter:
    """Percent of the whole machine that others used over a window. Pure: samples in, percent out.

    If the own task's seconds are implausible (they went back, or exceed the machine's), they are not subtracted, so that the
    error is on the side of "others are busy". If the machine's counters went back, the window starts again.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = max(window_s, MIN_WINDOW_S)
        self._samples: deque[CpuSample] = deque()  # their own_s is the sum of the plausible parts
        self._own_before_s = 0.0

    @property
    def last_at_s(self) -> float:
        return self._samples[-1].at_s if self._samples else NEVER

    def due(self, now_s: float) -> bool:
        return not 0 <= now_s - self.last_at_s < self._window_s / SAMPLES

    def add(self, sample: CpuSample) -> None:
        own_s = 0.0
        if self._samples:
            last = self._samples[-1]
            spent_s, own_more_s = sample.total_s - last.total_s, sample.own_s - self._own_before_s
            if not (spent_s >= 0 and sample.at_s >= last.at_s):
                self._samples.clear()
            else:
                own_s = last.own_s + (own_more_s if 0 <= own_more_s <= spent_s * 1.1 + 0.1 else 0.0)
        self._own_before_s = sample.own_s
        self._samples.append(CpuSample(sample.at_s, sample.total_s, sample.idle_s, own_s))
        while len(self._samples) > 2 and sample.at_s - self._samples[1].at_s >= self._window_s:
            self._samples.popleft()

    def percent(self) -> float | None:
        """0 to 100, or None while the window is too short."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        spent_s = last.total_s - first.total_s
        if last.at_s - first.at_s < MIN_WINDOW_S or not spent_s > 0.1:
            return None
        # iowait may step back a little, and idle time with it: count it as none.
        others_s = spent_s - max(0.0, last.idle_s - first.idle_s) - (last.own_s - first.own_s)
        return min(100.0, max(0.0, 100.0 * others_s / spent_s))


class HostSensor:
    """Readings of the CPU and of the machine's fitness, taken when asked for.

    Args:
        settings: `host` of node.yaml.
        own_cpu_s: CPU seconds that the node's task has used so far; 0 without one.
        in_hours: whether it is within `work.hours`, and the seconds until that changes; None: at any time.
        going_down: why the machine is about to sleep or shut down, as text; empty: it is not.
        own_pids: processes of the node's task; they are no exclusive program.
        metered: None: any network will do.
        upower: None: only the kernel is asked for the power supply.
        cpu_times, memory: psutil's; tests give others.
    """

    def __init__(
        self,
        clock: Clock,
        settings: HostSettings,
        own_cpu_s: Callable[[], float],
        in_hours: Callable[[], tuple[bool, float]] | None = None,
        going_down: Callable[[], str] = lambda: "",
        own_pids: Callable[[], Collection[int]] = tuple,
        metered: Metered | None = None,
        upower: UPower | None = None,
        *,
        sys_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        cpu_times: Callable[[], Any] = psutil.cpu_times,
        memory: Callable[[], Any] = psutil.virtual_memory,
    ) -> None:
        self._clock, self._settings = clock, settings
        self._own_cpu_s, self._in_hours, self._going_down = own_cpu_s, in_hours, going_down
        self._sys_root, self._cpu_times, self._memory = sys_root, cpu_times, memory
        self._pressure = proc_root / "pressure/memory"
        self._programs = Programs(settings.exclusive_programs, own_pids, proc_root=proc_root)
        self._checks = SiteChecks(settings.checks, clock, settings.check_interval_sec)
        self._metered, self._upower = metered, upower
        self._meter = CpuMeter(CPU_WINDOW_S)
        self._kernel_power: Power | str = Power()  # a text: why it is not known
        self._heat_found = FIT
        self._slow_at_s = NEVER
        self._hot = False

    async def start(self, wake: Wake) -> None:
        """Start the site's checks and the questions to NetworkManager and UPower; the rest needs no start."""
        await asyncio.gather(*(part.start(wake) for part in self._parts))

    async def stop(self) -> None:
        await asyncio.gather(*(part.stop() for part in self._parts))

    @property
    def _parts(self) -> list[SiteChecks | Metered | UPower]:
        return [self._checks, *([self._metered] if self._metered else []), *([self._upower] if self._upower else [])]

    def cpu(self, now_s: float) -> Reading[Cpu]:
        """Percent of the whole machine that others used, over CPU_WINDOW_S or since the last sample."""
        source = "CPU times"
        try:
            sample_s = self._clock.now_s()
            if self._meter.due(sample_s):
                self._meter.add(self._sample(sample_s))
        except Exception as error:  # noqa: BLE001 - any error makes the load unknown
            return Reading(None, f"CPU times cannot be read: {error_text(error)}", source, now_s)
        percent = self._meter.percent()
        if percent is None:
            return Reading(None, "first measurement under way", source, now_s)
        return Reading(Cpu(percent), "", source, self._meter.last_at_s)

    def _sample(self, at_s: float) -> CpuSample:
        t = self._cpu_times()._asdict()
        # A guest's time is part of user's; time that the hypervisor gave to other machines (steal) is use by others.
        total_s = sum(t.values()) - t.get("guest", 0.0) - t.get("guest_nice", 0.0)
        return CpuSample(at_s, total_s, t["idle"] + t.get("iowait", 0.0), self._own_cpu_s())

    def host(self, now_s: float) -> Reading[Host]:
        """Fit, unfit with every reason, going down, or unknown. Known reasons take precedence over unknown ones."""
        source = "host"
        try:
            if reason := self._going_down():
                return Reading(Host(False, True, reason), "", "logind", now_s)
            found = self._look(now_s)
        except Exception as error:  # noqa: BLE001 - any error makes the host unknown
            return Reading(None, error_text(error), source, now_s)
        if found.unfit:
            return Reading(Host(False, False, "; ".join(found.unfit)), "", source, now_s)
        if found.unknown:
            return Reading(None, "; ".join(found.unknown), source, now_s)
        return Reading(Host(), "", source, now_s)

    def _look(self, now_s: float) -> Findings:
        if not 0 <= now_s - self._slow_at_s < SLOW_S:
            self._look_slowly()
            self._slow_at_s = now_s
        programs = tuple(f"{program} runs (host.exclusive_programs)" for program in self._programs.running(now_s))
        network = self._metered.findings() if self._metered else FIT
        memory = merge((self._free_memory(), self._memory_pressure()))
        slow = self._power(), self._heat_found
        return merge((Findings(programs), self._checks.findings(now_s), self._hours(), memory, network, *slow))

    def _hours(self) -> Findings:
        inside, change_s = self._in_hours() if self._in_hours is not None else (True, 0.0)
        if inside:
            return FIT
        opens = f"opens in {duration(change_s)}" if isfinite(change_s) else "which never open: name a day in work.days"
        return Findings((f"outside work.hours, {opens}",))

    def _free_memory(self) -> Findings:
        available_gb, least_gb = self._memory().available / GIB, self._settings.min_memory_gb
        if available_gb >= least_gb:
            return FIT
        setting = "(host.min_memory_gb)"
        return Findings((f"{number(available_gb)} GiB of memory available, {number(least_gb)} GiB required {setting}",))

    def _memory_pressure(self) -> Findings:
        limit, setting = self._settings.max_memory_pressure_percent, "(host.max_memory_pressure_percent)"
        if limit >= 100:
            return FIT
        try:
            percent = pressure(self._pressure.read_text())
        except (OSError, ValueError) as error:
            return Findings(unknown=(f"memory pressure cannot be read: {error_text(error)} {setting}",))
        if percent <= limit:
            return FIT
        return Findings((f"memory pressure {number(percent)} %, limit {number(limit)} % {setting}",))

    def _look_slowly(self) -> None:
        try:
            self._kernel_power = power(self._sys_root)
        except (OSError, ValueError) as error:
            self._kernel_power = error_text(error)
        hottest = max(temperatures(self._sys_root), default=None)
        self._heat_found = self._heat(*hottest) if hottest is not None else FIT

    def _heat(self, celsius: float, chip: str) -> Findings:
        """Unfit above the limit, and until it has cooled by some degrees, so that it does not alternate at the limit."""
        limit = self._settings.max_temperature_c
        self._hot = not celsius <= (limit - COOL_C if self._hot else limit)
        if not self._hot:
            return FIT
        until = "" if celsius > limit else f", to be {number(limit - COOL_C)} °C first"
        return Findings((f"{chip} at {number(celsius)} °C, limit {number(limit)} °C{until} (host.max_temperature_c)",))

    def _power(self) -> Findings:
        if isinstance(self._kernel_power, str):
            return Findings(unknown=(f"power supply cannot be read: {self._kernel_power}",))
        try:
            fed = both(self._kernel_power, self._upower.power() if self._upower else Power())
        except ValueError as unanswered:
            return Findings(unknown=(f"power supply unknown: {unanswered}",))
        least, says = self._settings.min_battery_percent, f", says {fed.source}" if fed.source else ""
        if fed.on_battery and self._settings.on_battery == "never":
            return Findings((f"on battery{says} (host.on_battery: never)",))
        if fed.on_battery and fed.percent is None:
            return Findings(unknown=(f"on battery{says}, which does not say how full it is (host.min_battery_percent)",))
        if fed.percent is not None and (fed.on_battery or fed.discharging) and not fed.percent >= least:
            required = f"{number(least)} % required (host.min_battery_percent)"
            return Findings((f"battery at {number(fed.percent)} %, {required}",))
        return FIT


def pressure(text: str) -> float:
    """Percent of the last ten seconds in which a process waited, from the text of a file in /proc/pressure.

    Raises:
        ValueError: it is not there.
    """
    for line in text.splitlines():
        kind, *fields = line.split()
        known = dict(field.split("=", 1) for field in fields if "=" in field)
        if kind == "some" and "avg10" in known and 0 <= (percent := float(known["avg10"])) <= 100:
            return percent
    raise ValueError("it does not say how long something waits")


def temperatures(sys_root: Path) -> Iterator[tuple[float, str]]:
    """(°C, the chip's name) of each readable sensor of the processor."""
    folder = sys_root / "class/hwmon"
    for chip in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            name = read_text(chip / "name")
            if name not in CPU_CHIPS and not name.startswith("cpu"):
                continue
            inputs = sorted(chip.glob("temp*_input"))
        except OSError:
            continue
        for file in inputs:
            try:
                celsius = int(read_text(file)) / 1000
            except (OSError, ValueError):
                continue
            if PLAUSIBLE_C[0] <= celsius <= PLAUSIBLE_C[1]:
                yield celsius, name
