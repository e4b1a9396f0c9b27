"""The machine itself: the CPU that others use (R11), and whether it is fit to work (R12): power, memory, heat, hours.

Besides: programs beside which nothing may run, memory pressure, a metered network, and a site's own checks, each only
where node.yaml asks for it. Whether the machine plays a game by gamemode's word is known on the person's own bus alone,
which the daemon may not ask: the session agent does, and tells it among the desktop's inhibitors.

Nothing here has a timer: samples are taken when the tick asks, and a CPU percentage is the average since an earlier
one, so ticks that are rare still get an honest value. All of it together takes well under a millisecond; what may be
slower on some machines (batteries and temperatures, both in sysfs) is read every five seconds at most.

sysfs is read here and not through psutil, for two reasons: psutil takes the battery of a wireless mouse for the
machine's own, and it reads every temperature there is, which wakes sleeping graphics cards and believes inputs that
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
from supervisor.linux.text import one_line
from supervisor.sensors.base import Wake
from supervisor.sensors.host.metered import Metered
from supervisor.sensors.host.programs import Programs
from supervisor.sensors.host.site_checks import SiteChecks

GIB: Final = 2**30
CPU_WINDOW_S: Final = 10.0  # CPU use is averaged over this time: a short burst stops nothing
MIN_WINDOW_S: Final = 0.5  # a shorter one is mostly the clock's own steps
SAMPLES: Final = 40  # at most so many in a window
SLOW_S: Final = 5.0  # batteries and temperatures are read no more often
CPU_CHIPS: Final = ("coretemp", "k8temp", "k10temp", "zenpower", "via_cputemp", "soc_thermal")
COOL_C: Final = 5.0
PLAUSIBLE_C: Final = (-40.0, 150.0)

FIRST_CPU: Final = "first measurement under way"


@dataclass(frozen=True, slots=True)
class CpuSample:
    """Seconds of all processors since boot, and the own task's so far; `at_s` is CLOCK_BOOTTIME."""

    at_s: float
    total_s: float
    idle_s: float
    own_s: float


class CpuMeter:
    """Percent of the whole machine that others used over a window. Pure: samples in, percent out.

    Whatever cannot be believed of the own task's seconds (they went back, or are more than the machine had) is not
    taken off, so that the error is on the side of "others are busy". Counters of the machine that went back start anew.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = max(window_s, MIN_WINDOW_S)
        self._samples: deque[CpuSample] = deque()  # their own_s is the sum of what could be believed
        self._own_before_s = 0.0

    @property
    def last_at_s(self) -> float:
        """When the last sample was taken."""
        return self._samples[-1].at_s if self._samples else NEVER

    def due(self, now_s: float) -> bool:
        """Whether a further sample would say anything new."""
        return not 0 <= now_s - self.last_at_s < self._window_s / SAMPLES

    def add(self, sample: CpuSample) -> None:
        """Take a sample."""
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
        """0 to 100, or None while there is no window to speak of."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        spent_s = last.total_s - first.total_s
        if last.at_s - first.at_s < MIN_WINDOW_S or not spent_s > 0.1:
            return None
        # iowait may step back a little, so idle time may seem to: it is never less than nothing.
        others_s = spent_s - max(0.0, last.idle_s - first.idle_s) - (last.own_s - first.own_s)
        return min(100.0, max(0.0, 100.0 * others_s / spent_s))


@dataclass(frozen=True, slots=True)
class Power:
    """How the machine is fed: `percent` is its batteries' mean, None without one."""

    on_battery: bool = False
    discharging: bool = False
    percent: float | None = None


class HostSensor:
    """Readings of the CPU and of the machine's fitness, taken when asked for.

    Args:
        clock: the clock.
        settings: `host` of node.yaml.
        own_cpu_s: CPU seconds that the node's task has used so far; 0 without one.
        in_hours: whether it is within `work.hours`, and the seconds until that changes; None: at any time.
        going_down: why the machine is about to sleep or shut down, in words; empty: it is not.
        own_pids: processes of the node's task; they are no exclusive program.
        metered: NetworkManager's word; None: any network will do.
        cpu_times, memory: psutil's, replaceable.
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
        self._metered = metered
        self._meter = CpuMeter(CPU_WINDOW_S)
        self._slow: tuple[list[str], list[str]] = ([], [])
        self._slow_at_s = NEVER
        self._hot = False

    async def start(self, wake: Wake) -> None:
        """Begin what takes its time: the site's checks, the question to NetworkManager. The rest needs no start."""
        jobs = [self._checks.start(wake)] + ([self._metered.start(wake)] if self._metered else [])
        await asyncio.gather(*jobs)

    async def stop(self) -> None:
        """Let go of it."""
        await asyncio.gather(self._checks.stop(), *([self._metered.stop()] if self._metered else []))

    def sample(self) -> None:
        """Take a CPU sample now, if it would say anything new.

        Raises:
            OSError: the CPU times cannot be read.
        """
        now_s = self._clock.now_s()
        if not self._meter.due(now_s):
            return
        t = self._cpu_times()._asdict()
        # A guest's time is in user's already; time that the hypervisor gave to other machines (steal) is others' use.
        total_s = sum(t.values()) - t.get("guest", 0.0) - t.get("guest_nice", 0.0)
        self._meter.add(CpuSample(now_s, total_s, t["idle"] + t.get("iowait", 0.0), self._own_cpu_s()))

    def cpu(self, now_s: float) -> Reading[Cpu]:
        """Percent of the whole machine that others used, over CPU_WINDOW_S or since the last sample."""
        source = "CPU times"
        try:
            self.sample()
        except Exception as error:  # noqa: BLE001 - whatever it is, the load is unknown, with the reason (R12)
            return Reading(None, f"CPU times cannot be read: {_line(error)}", source, now_s)
        percent = self._meter.percent()
        if percent is None:
            return Reading(None, FIRST_CPU, source, now_s)
        return Reading(Cpu(percent), "", source, self._meter.last_at_s)

    def host(self, now_s: float) -> Reading[Host]:
        """Fit, unfit with every reason, going down, or unknown. What is known to be unfit is said before the unknown."""
        source = "host"
        try:
            if reason := self._going_down():
                return Reading(Host(False, True, reason), "", "logind", now_s)
            unfit, errors = self._judge(now_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, the host is unknown, with the reason (R12)
            return Reading(None, _line(error), source, now_s)
        if unfit:
            return Reading(Host(False, False, "; ".join(unfit)), "", source, now_s)
        if errors:
            return Reading(None, "; ".join(errors), source, now_s)
        return Reading(Host(), "", source, now_s)

    def _judge(self, now_s: float) -> tuple[list[str], list[str]]:
        """What is unfit, and what cannot be told, in words."""
        unfit, errors = self._checks.verdicts(now_s)
        unfit = [f"{program} runs (host.exclusive_programs)" for program in self._programs.running(now_s)] + unfit
        if self._in_hours is not None:
            inside, change_s = self._in_hours()
            if not inside:
                opens = f"opens in {duration(change_s)}" if isfinite(change_s) else "which never open: name a day in work.days"
                unfit.append(f"outside work.hours, {opens}")
        available_gb = self._memory().available / GIB
        if not available_gb >= self._settings.min_memory_gb:
            least = number(self._settings.min_memory_gb)
            unfit.append(f"{number(available_gb)} GiB of memory available, {least} GiB required (host.min_memory_gb)")
        if not 0 <= now_s - self._slow_at_s < SLOW_S:
            self._slow, self._slow_at_s = self._judge_slow(), now_s
        for more_unfit, more_errors in (self._judge_pressure(), self._judge_network(), self._slow):
            unfit += more_unfit
            errors += more_errors
        return unfit, errors

    def _judge_pressure(self) -> tuple[list[str], list[str]]:
        limit = self._settings.max_memory_pressure_percent
        if limit >= 100:
            return [], []
        try:
            percent = pressure(self._pressure.read_text())
        except (OSError, ValueError) as error:
            return [], [f"memory pressure cannot be read: {_line(error)} (host.max_memory_pressure_percent)"]
        if percent <= limit:
            return [], []
        return [f"memory pressure {number(percent)} %, limit {number(limit)} % (host.max_memory_pressure_percent)"], []

    def _judge_network(self) -> tuple[list[str], list[str]]:
        unfit, error = self._metered.verdict() if self._metered else ("", "")
        return [unfit] if unfit else [], [error] if error else []

    def _judge_slow(self) -> tuple[list[str], list[str]]:
        unfit: list[str] = []
        errors: list[str] = []
        try:
            unfit += self._judge_power(power(self._sys_root))
        except (OSError, ValueError) as error:
            errors.append(f"power supply cannot be read: {_line(error)}")
        hottest = max(temperatures(self._sys_root), default=None)
        if hottest is not None:
            unfit += self._judge_heat(*hottest)
        return unfit, errors

    def _judge_heat(self, celsius: float, chip: str) -> list[str]:
        """Too hot at once above the limit, and no more once it has cooled by some degrees: else it would swing there."""
        limit = self._settings.max_temperature_c
        self._hot = not celsius <= (limit - COOL_C if self._hot else limit)
        if not self._hot:
            return []
        until = "" if celsius > limit else f", to be {number(limit - COOL_C)} °C first"
        return [f"{chip} at {number(celsius)} °C, limit {number(limit)} °C{until} (host.max_temperature_c)"]

    def _judge_power(self, fed: Power) -> list[str]:
        if fed.on_battery and self._settings.on_battery == "never":
            return ["on battery (host.on_battery: never)"]
        if fed.percent is not None and (fed.on_battery or fed.discharging):
            least = self._settings.min_battery_percent
            if not fed.percent >= least:
                return [f"battery at {number(fed.percent)} %, {number(least)} % required (host.min_battery_percent)"]
        return []


def pressure(text: str) -> float:
    """Percent of the last ten seconds in which some process waited, out of a file of /proc/pressure.

    Raises:
        ValueError: it does not say.
    """
    for line in text.splitlines():
        kind, *fields = line.split()
        known = dict(field.split("=", 1) for field in fields if "=" in field)
        if kind == "some" and "avg10" in known and 0 <= (percent := float(known["avg10"])) <= 100:
            return percent
    raise ValueError("it does not say how long something waits")


def power(sys_root: Path) -> Power:
    """How the machine is fed, from its own power supplies; those of mice and headsets are not its own.

    Raises:
        OSError: a supply cannot be read.
        ValueError: there is a battery, and nothing says whether it is in use or how full it is.
    """
    folder = sys_root / "class/power_supply"
    supplies = sorted(folder.iterdir()) if folder.is_dir() else []
    plugged = unplugged = False
    batteries: list[tuple[str, str, str]] = []
    for supply in supplies:
        kind = _read(supply / "type")
        if not kind or _read(supply / "scope") == "Device":
            continue
        if kind in ("Battery", "UPS"):
            if _read(supply / "present") != "0":
                batteries.append((supply.name, _read(supply / "status"), _read(supply / "capacity")))
        else:
            # A charger that is not in use says 0 too, so only the mains' 0 says that the machine is unplugged.
            online = _read(supply / "online")
            plugged = plugged or online not in ("0", "")
            unplugged = unplugged or (kind == "Mains" and online == "0")
    if not batteries:
        return Power()
    discharging = any(status == "Discharging" for _, status, _ in batteries)
    if not (plugged or unplugged or discharging) and any(s in ("Unknown", "") for _, s, _ in batteries):
        raise ValueError(f"{batteries[0][0]} does not say whether it is in use")
    on_battery = not plugged and (unplugged or discharging)
    told = [float(capacity) for _, _, capacity in batteries if capacity]
    if not told and (on_battery or discharging):
        raise ValueError(f"{batteries[0][0]} does not say how full it is")
    return Power(on_battery, discharging, sum(told) / len(told) if told else None)


def temperatures(sys_root: Path) -> Iterator[tuple[float, str]]:
    """(°C, the chip's name) of each of the processor's sensors; what cannot be read is not judged."""
    folder = sys_root / "class/hwmon"
    for chip in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            name = _read(chip / "name")
            if name not in CPU_CHIPS and not name.startswith("cpu"):
                continue
            inputs = sorted(chip.glob("temp*_input"))
        except OSError:
            continue
        for file in inputs:
            try:
                celsius = int(_read(file)) / 1000
            except (OSError, ValueError):
                continue
            if PLAUSIBLE_C[0] <= celsius <= PLAUSIBLE_C[1]:
                yield celsius, name


def _read(path: Path) -> str:
    """A small file's text; empty where there is none (it may be gone by now).

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text or type(error).__name__, 200)
