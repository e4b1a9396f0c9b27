"""The machine itself: others' CPU, power, memory, heat, hours (R11, R12)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from states.observation import Cpu, Host
from supervisor.config.schema import HostSettings
from supervisor.linux.clock import SystemClock
from supervisor.sensors.host.host import GIB, CpuMeter, CpuSample, HostSensor

NO_TIME = psutil.cpu_times()._replace(**dict.fromkeys(psutil.cpu_times()._fields, 0.0))


class Memory(NamedTuple):
    """psutil's, as far as it is read."""

    available: float = 8.0 * GIB


class Machine:
    """A machine whose clock and counters the test moves."""

    def __init__(self, sys_root: Path, **settings: Any) -> None:
        self.at_s, self.own_s, self.times, self.memory = 1000.0, 0.0, NO_TIME, Memory()
        self.going_down = ""
        self.hours = (True, math.inf)
        self.sensor = HostSensor(
            self, HostSettings(**settings), lambda: self.own_s, lambda: self.hours, lambda: self.going_down,
            sys_root=sys_root, cpu_times=lambda: self.times, memory=lambda: self.memory,
        )  # fmt: skip

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.at_s

    def passes(self, seconds: float, own_s: float = 0.0, **spent: float) -> None:
        """Time passes, in which the processors spent this."""
        self.at_s += seconds
        self.own_s += own_s
        self.times = self.times._replace(**{name: getattr(self.times, name) + spent_s for name, spent_s in spent.items()})

    def cpu(self) -> float | str:
        """Percent, or why not."""
        reading = self.sensor.cpu(self.at_s)
        return reading.error if reading.value is None else reading.value.percent

    def host(self) -> Host | str:
        """Fitness, or why not."""
        reading = self.sensor.host(self.at_s)
        return reading.error if reading.value is None else reading.value


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("spent", "own_s", "percent"),
    [
        pytest.param({"idle": 4}, 0, 0, id="idle"),
        pytest.param({"user": 1, "idle": 3}, 0, 25, id="a quarter"),
        pytest.param({"nice": 1, "system": 1, "idle": 2}, 0, 50, id="nice and system count"),
        pytest.param({"user": 1, "iowait": 1, "idle": 2}, 0, 25, id="waiting for a disk is idle"),
        pytest.param({"user": 2, "guest": 2, "idle": 2}, 0, 50, id="a guest is in user already"),
        pytest.param({"nice": 2, "guest_nice": 2, "idle": 2}, 0, 50, id="a nice guest too"),
        pytest.param({"steal": 1, "idle": 3}, 0, 25, id="what other machines took is others'"),
        pytest.param({"user": 3, "idle": 1}, 3, 0, id="all of it is the task's"),
        pytest.param({"user": 3, "idle": 1}, 2, 25, id="the task's is taken off"),
        pytest.param({"user": 1, "idle": 3}, 1.2, 0, id="never below nothing"),
    ],
)
def test_others_share_of_the_whole_machine(machine: Machine, spent: dict[str, float], own_s: float, percent: float) -> None:
    """Two seconds of two processors."""
    assert machine.cpu() == "first measurement under way"
    machine.passes(2, own_s, **spent)
    assert machine.cpu() == pytest.approx(percent)
    assert machine.sensor.cpu(5000).read_at_s == machine.at_s


def test_the_window_moves_on(machine: Machine) -> None:
    """Only ten seconds count; rare looks give the average since the last."""
    machine.cpu()
    for _ in range(10):
        machine.passes(1, user=2)
        machine.cpu()
    assert machine.cpu() == 100
    for _ in range(5):
        machine.passes(1, idle=2)
        machine.cpu()
    assert machine.cpu() == pytest.approx(50)
    machine.passes(45, idle=45, user=45)
    assert machine.cpu() == pytest.approx(50)
    machine.passes(45, idle=90)
    assert machine.cpu() == 0


def test_looks_in_quick_succession_take_no_sample(machine: Machine) -> None:
    """They get the reading as it is, with its age."""
    machine.cpu()
    machine.passes(1, idle=2)
    machine.cpu()
    machine.passes(0.1, user=0.2)
    reading = machine.sensor.cpu(machine.at_s)
    assert (reading.value, reading.read_at_s) == (Cpu(0.0), machine.at_s - 0.1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda m: setattr(m, "own_s", 0.0), 100.0, id="the task's counter went back: nothing is taken off"),
        pytest.param(lambda m: setattr(m, "own_s", 1e9), 100.0, id="more than the machine had: nothing is taken off"),
        pytest.param(lambda m: setattr(m, "own_s", math.nan), 100.0, id="not a number: nothing is taken off"),
        pytest.param(lambda m: setattr(m, "times", NO_TIME), "first measurement under way", id="the machine's went back"),
        pytest.param(lambda m: setattr(m, "at_s", 0.0), "first measurement under way", id="the clock went back"),
    ],
)
def test_counters_that_cannot_be_believed(
    machine: Machine, change: Callable[[Machine], None], expected: float | str
) -> None:
    """Each error is on the side of "others are busy", or of unknown."""
    machine.own_s = 50.0
    machine.passes(1, user=1)
    machine.cpu()
    machine.passes(2, user=4)
    change(machine)
    assert machine.cpu() == expected


def test_cpu_times_that_cannot_be_read_are_unknown(machine: Machine) -> None:
    """With the reason, in one line."""

    def refuse() -> Any:
        raise PermissionError(13, "Permission denied", "/proc/stat")

    machine.sensor._cpu_times = refuse
    assert machine.cpu() == "CPU times cannot be read: Permission denied"


steps = st.lists(
    st.tuples(
        st.floats(0, 100), st.floats(-1, 400), st.floats(-1, 400), st.one_of(st.floats(-500, 500), st.just(math.nan))
    ),
    max_size=30,
)


@given(steps, st.floats(0.1, 300))
def test_percent_is_in_bounds_and_never_less_for_a_broken_task_counter(
    moves: list[tuple[float, float, float, float]], window_s: float
) -> None:
    """0 to 100 or unknown for all counters; without believable own seconds never below the true load."""
    meter, alone = CpuMeter(window_s), CpuMeter(window_s)
    at_s = total_s = idle_s = own_s = 0.0
    for seconds, spent_s, rested_s, own_more_s in moves:
        at_s, total_s, idle_s = at_s + seconds, total_s + spent_s, idle_s + min(rested_s, spent_s)
        own_s = own_s + own_more_s if not math.isnan(own_s) else own_more_s
        meter.add(CpuSample(at_s, total_s, idle_s, own_s))
        alone.add(CpuSample(at_s, total_s, idle_s, 0.0))
        percent, whole = meter.percent(), alone.percent()
        assert (percent is None) == (whole is None)
        if percent is not None and whole is not None:
            assert 0 <= percent <= whole + 1e-9
            assert whole <= 100


@given(st.lists(st.floats(0.001, 3), max_size=30), st.floats(0.001, 2))
def test_once_known_the_load_stays_known_however_looks_follow(waits: list[float], window_s: float) -> None:
    """A short window, and two looks right after each other: no task may be stopped for that."""
    meter, at_s, known = CpuMeter(window_s), 0.0, False
    for wait_s in (0.0, *waits):
        at_s += wait_s
        if meter.due(at_s):
            meter.add(CpuSample(at_s, 4 * at_s, 3 * at_s, 0.0))
        known = known or meter.percent() is not None
        assert meter.percent() == (pytest.approx(25.0) if known else None)


@given(st.floats(0.6, 60), st.integers(1, 64), st.floats(0, 1), st.floats(0, 1))
def test_the_tasks_own_use_is_not_held_against_it(seconds: float, cores: int, busy: float, own: float) -> None:
    """R11, for any share: the rest is exactly the others' share."""
    meter = CpuMeter(10)
    whole_s = seconds * cores
    busy_s = whole_s * busy
    meter.add(CpuSample(0, 0, 0, 0))
    meter.add(CpuSample(seconds, whole_s, whole_s - busy_s, busy_s * own))
    assert meter.percent() == pytest.approx(100 * busy * (1 - own), abs=1e-6)


def supply(machine_root: Path, name: str, **files: object) -> None:
    """A power supply in sysfs."""
    folder = machine_root / "class/power_supply" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(f"{text}\n")


AC_ON, AC_OFF = {"type": "Mains", "online": 1}, {"type": "Mains", "online": 0}
FULL = {"type": "Battery", "present": 1, "status": "Full", "capacity": 100}
DRAINING = {"type": "Battery", "present": 1, "status": "Discharging", "capacity": 80}
LOW = DRAINING | {"capacity": 30}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": 5}
FIT = Host()
NEVER_ON_BATTERY = "on battery (host.on_battery: never)"
TOO_LOW = "battery at 30 %, 50 % required (host.min_battery_percent)"


@pytest.mark.parametrize(
    ("supplies", "never", "allow"),
    [
        pytest.param([], FIT, FIT, id="no supply at all: a desktop"),
        pytest.param([MOUSE], FIT, FIT, id="a wireless mouse is not the machine"),
        pytest.param([AC_ON, FULL], FIT, FIT, id="plugged in"),
        pytest.param([AC_ON, LOW | {"status": "Charging"}], FIT, FIT, id="charging, though low"),
        pytest.param([AC_ON, LOW], TOO_LOW, TOO_LOW, id="draining in spite of a weak charger"),
        pytest.param([AC_OFF, DRAINING], NEVER_ON_BATTERY, FIT, id="unplugged"),
        pytest.param([AC_OFF, DRAINING | {"status": "Unknown"}], NEVER_ON_BATTERY, FIT, id="unplugged, battery says nothing"),
        pytest.param([AC_OFF, LOW], NEVER_ON_BATTERY, TOO_LOW, id="unplugged and low"),
        pytest.param([DRAINING], NEVER_ON_BATTERY, FIT, id="no word of the mains"),
        pytest.param([AC_OFF, {"type": "USB", "online": 1}, FULL], FIT, FIT, id="fed over USB"),
        pytest.param([{"type": "USB", "online": 0}, FULL], FIT, FIT, id="an empty USB port says nothing"),
        pytest.param([AC_OFF, FULL | {"present": 0}], FIT, FIT, id="an empty battery bay"),
        pytest.param([{"type": "UPS", "status": "Discharging", "capacity": 80}], NEVER_ON_BATTERY, FIT, id="a UPS that drains"),
        pytest.param(
            [AC_OFF, LOW | {"capacity": 20}, LOW | {"capacity": 40}], NEVER_ON_BATTERY, TOO_LOW, id="the mean of two"
        ),
        pytest.param(
            [FULL | {"status": "Unknown"}], *["power supply cannot be read: s0 does not say whether it is in use"] * 2,
            id="a battery that says nothing",
        ),
        pytest.param(
            [AC_OFF, {"type": "Battery", "status": "Discharging"}],
            *["power supply cannot be read: s1 does not say how full it is"] * 2, id="nobody knows how full",
        ),
    ],
)  # fmt: skip
def test_power(tmp_path: Path, supplies: list[dict[str, Any]], never: Host | str, allow: Host | str) -> None:
    """Whether the machine's own supplies let it work, with either setting."""
    for i, files in enumerate(supplies):
        supply(tmp_path, f"s{i}", **files)
    for on_battery, expected in (("never", never), ("allow", allow)):
        host = Machine(tmp_path, on_battery=on_battery).host()
        if isinstance(host, Host) and not host.fit:
            host = host.reason
        assert host == expected


def chip(root: Path, number: int, name: str, *millis: object) -> None:
    """A hwmon chip in sysfs."""
    folder = root / f"class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name)
    for i, value in enumerate(millis, 1):
        (folder / f"temp{i}_input").write_text(str(value))


@pytest.mark.parametrize(
    ("chips", "reason"),
    [
        pytest.param([], "", id="none: not judged"),
        pytest.param([("coretemp", 60000, 95000)], "", id="at the limit"),
        pytest.param([("coretemp", 60000, 96500)], "coretemp at 96.5 °C, limit 95 °C (host.max_temperature_c)", id="hot"),
        pytest.param([("k10temp", 99000)], "k10temp at 99 °C, limit 95 °C (host.max_temperature_c)", id="hot AMD"),
        pytest.param([("cpu_thermal", 99000)], "cpu_thermal at 99 °C, limit 95 °C (host.max_temperature_c)", id="hot ARM"),
        pytest.param([("nct6775", 127000), ("amdgpu", 110000)], "", id="others' sensors and open inputs do not count"),
        pytest.param([("coretemp", "", "ten", 255000, -128000)], "", id="nonsense is not judged"),
    ],
)
def test_heat(tmp_path: Path, chips: list[tuple[Any, ...]], reason: str) -> None:
    """The processor's hottest sensor against `host.max_temperature_c`."""
    for i, one in enumerate(chips):
        chip(tmp_path, i, *one)
    host = Machine(tmp_path).host()
    assert isinstance(host, Host)
    assert (host.fit, host.reason) == (not reason, reason)


def test_heat_that_swings_around_its_limit_is_one_heat(tmp_path: Path) -> None:
    """Too hot above the limit, and until it has cooled by five degrees: the way down has a threshold of its own."""
    chip(tmp_path, 0, "coretemp", 0)
    (file,) = (tmp_path / "class/hwmon/hwmon0").glob("temp*_input")
    machine, fit = Machine(tmp_path), []
    for celsius in (90, 95, 95.1, 94.9, 95.1, 92, 90.1, 90, 94.9, 95, 96):
        file.write_text(str(int(celsius * 1000)))
        machine.at_s += 5.0
        host = machine.host()
        assert isinstance(host, Host)
        fit.append(host.fit)
        if celsius == 92:
            assert host.reason == "coretemp at 92 °C, limit 95 °C, to be 90 °C first (host.max_temperature_c)"
    assert fit == [True, True, False, False, False, False, False, True, True, True, False]


def test_memory_and_hours(machine: Machine) -> None:
    """Every reason is named, with the setting that would change it."""
    machine.memory = Memory(0.25 * GIB)
    machine.hours = (False, 10800.0)
    assert machine.host() == Host(
        False, False, "outside work.hours, opens in 3 h; 0.25 GiB of memory available, 1 GiB required (host.min_memory_gb)"
    )


def test_going_down_is_said_before_all_else(machine: Machine) -> None:
    """Also when something else cannot be read."""
    machine.going_down = "the machine is about to sleep"
    machine.memory = None  # type: ignore[assignment]
    assert machine.host() == Host(False, True, "the machine is about to sleep")
    machine.going_down = ""
    assert isinstance(machine.host(), str)


def test_unfit_is_said_before_unknown(tmp_path: Path) -> None:
    """What is known to be wrong says more than what cannot be read; both block."""
    supply(tmp_path, "BAT0", type="Battery", status="Unknown", capacity=50)
    machine = Machine(tmp_path)
    machine.hours = (False, 60.0)
    assert machine.host() == Host(False, False, "outside work.hours, opens in 60 s")


def test_hours_that_never_open_are_told_as_such(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.hours = (False, math.inf)
    assert machine.host() == Host(False, False, "outside work.hours, which never open: name a day in work.days")


def test_slow_readings_are_kept_five_seconds(tmp_path: Path) -> None:
    """Batteries and temperatures are not read at every tick."""
    machine = Machine(tmp_path)
    assert machine.host() == FIT
    supply(tmp_path, "AC", **AC_OFF)
    supply(tmp_path, "BAT0", **DRAINING)
    machine.at_s += 4.9
    assert machine.host() == FIT
    machine.at_s += 0.1
    assert machine.host() == Host(False, False, NEVER_ON_BATTERY)


def test_this_machine_is_read() -> None:
    """The real thing: values in bounds."""
    clock = SystemClock()
    sensor = HostSensor(clock, HostSettings(), lambda: 0.0)
    end_s = time.monotonic() + 5
    while (reading := sensor.cpu(clock.now_s())).value is None:
        assert reading.error == "first measurement under way"
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert 0 <= reading.value.percent <= 100
    assert sensor.host(clock.now_s()).error == ""
