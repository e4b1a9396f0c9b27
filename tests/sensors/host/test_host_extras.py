"""What node.yaml may ask of the host besides: programs, memory pressure, the network, a site's own checks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from support.clock import ManualClock
from support.login1 import PrivateBus
from support.session_services import Service
from support.waiting import eventually, play, until

from supervisor.config.schema import HostSettings
from supervisor.linux.clock import SystemClock
from supervisor.linux.dbus import PROPERTIES, SystemBus
from supervisor.linux.proc import Name, cgroup_of, in_units
from supervisor.sensors.host import programs as programs_module
from supervisor.sensors.host.findings import FIT
from supervisor.sensors.host.host import HostSensor, pressure
from supervisor.sensors.host.metered import NM, NM_PATH, Metered
from supervisor.sensors.host.power import DISPLAY_PATH, UPOWER, UPOWER_PATH, Power, UPower, both
from supervisor.sensors.host.programs import Programs
from supervisor.sensors.host.site_checks import SiteChecks

CLOCK = SystemClock()
GAME = f"my-game-{os.getpid()}"  # nobody else's on this machine, and short enough for the kernel


# --- exclusive programs, with real processes


@contextlib.contextmanager
def program(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real program of that name."""
    path = folder / name
    shutil.copy("/bin/sleep", path)
    with subprocess.Popen([path, "60"]) as process:
        try:
            yield process
        finally:
            process.kill()


def plain(value: object) -> str:
    """A test has the same name on every worker."""
    return str(value).replace(GAME, "GAME").replace(GAME[3:], "NAME")


@pytest.mark.parametrize("entry", [GAME, f"{{folder}}/{GAME}"], ids=plain)
def test_a_program_is_seen_at_the_next_look_and_gone_at_the_one_after(entry: str, tmp_path: Path) -> None:
    programs = Programs([entry.format(folder=tmp_path)])
    assert programs.running(100.0) == []
    with program(tmp_path, GAME) as game:
        assert programs.running(101.0) == [f"{GAME} (pid {game.pid})"]
        game.kill()
        until(lambda: not programs.running(102.0), "a zombie is nobody who plays")
    assert programs.running(103.0) == []


@pytest.mark.parametrize(
    ("entry", "name", "seen"),
    [
        (GAME[3:], GAME, False),
        (f"/usr/bin/{GAME}", GAME, False),
        ("a-game-with-a-very-long-name", "a-game-with-a-very-long-name", True),
        ("nothing-*.scope", GAME, False),
    ],
    ids=plain,
)
def test_only_what_is_listed_counts(entry: str, name: str, seen: bool, tmp_path: Path) -> None:
    with program(tmp_path, name):
        assert bool(Programs([entry]).running(100.0)) is seen


def test_a_task_of_ours_is_no_exclusive_program(tmp_path: Path) -> None:
    with program(tmp_path, GAME) as task:
        assert Programs([GAME], lambda: {task.pid}).running(100.0) == []


def test_a_process_that_becomes_another_program_is_seen(tmp_path: Path) -> None:
    """At once while it is young; within ten seconds later, when all are read again."""
    shutil.copy("/bin/sleep", tmp_path / GAME)
    script = f"read go; exec {tmp_path}/{GAME} 60"
    for start_s, look_s in ((100.0, 101.0), (100.0, 125.0)):
        programs = Programs([GAME])
        with subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE) as shell:
            assert programs.running(start_s) == []
            assert shell.stdin is not None
            shell.stdin.write(b"\n")
            shell.stdin.flush()
            exe = Path(f"/proc/{shell.pid}/exe")
            until(lambda exe=exe: os.readlink(exe).endswith(GAME), "the other program")
            assert programs.running(look_s) == [f"{GAME} (pid {shell.pid})"]
            shell.kill()


def test_no_look_reads_all_of_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some desktops have a thousand, and all at once would delay the loop. Each is still read within ten seconds."""
    pids = range(1000, 1300)
    for pid in pids:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text("sleep\n")
    programs, reads = Programs([GAME], proc_root=tmp_path), list[list[int]]()
    name_of = programs_module.name_of

    def counted(proc_root: Path, pid: int) -> Name:
        reads[-1].append(pid)
        return name_of(proc_root, pid)

    monkeypatch.setattr(programs_module, "name_of", counted)
    for second in range(60):
        reads.append([])
        assert programs.running(100.0 + second) == []
    settled = reads[20:]  # until then they are as young as the first look
    assert max(map(len, settled)) <= len(pids) / 5
    for first in range(len(settled) - 11):
        assert {pid for look in settled[first : first + 11] for pid in look} == set(pids)


def test_windows_programs_and_sandboxes_are_seen_by_what_they_show(tmp_path: Path) -> None:
    """A short name beside another program's path; a sandbox's unit."""
    for pid, comm, cgroup in (
        (11, "Game.exe", "0::/user.slice/user-1000.slice/session-2.scope"),
        (12, "bwrap", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.game.Fun-4711.scope"),
    ):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "comm").write_text(f"{comm}\n")
        (folder / "exe").symlink_to("/usr/lib/wine/wine64-preloader")
        (folder / "cgroup").write_text(f"{cgroup}\n")
        (folder / "stat").write_text(f"{pid} ({comm}) S 1 1")
    programs = Programs(["Game.exe", "app-flatpak-org.game.Fun-*.scope"], proc_root=tmp_path)
    assert programs.running(1.0) == ["Game.exe (pid 11)", "bwrap (pid 12)"]


@pytest.mark.parametrize("shown", [True, False])
def test_where_other_users_processes_are_hidden_nobody_knows_what_runs(shown: bool, tmp_path: Path) -> None:
    """/proc mounted with hidepid: the first process is always there, and not shown to a service's user."""
    (tmp_path / "self").symlink_to("7")
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_text("ours")
    if shown:
        (tmp_path / "1").mkdir()
        (tmp_path / "1/comm").write_text("init")
    sensor = HostSensor(CLOCK, HostSettings(exclusive_programs=["supergame"]), lambda: 0.0, proc_root=tmp_path)
    error = sensor.host(CLOCK.now_s()).error
    hidden = "other users' processes are hidden: mount /proc without hidepid (host.exclusive_programs)"
    assert error == ("" if shown else hidden)


def test_nothing_is_looked_at_where_nothing_is_asked_for() -> None:
    assert Programs([], proc_root=Path("/does/not/exist")).running(1.0) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/ollama.service\n", "/system.slice/ollama.service"),
        ("1:name=systemd:/system.slice/x.service\n0::/\n", "/system.slice/x.service"),
        ("12:cpu:/\n0::/a:b\n", "/a:b"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_the_control_group_is_systemds(text: str, path: str) -> None:
    assert cgroup_of(text) == path


@pytest.mark.parametrize(
    ("unit", "inside"), [("ollama.service", True), ("lama.service", False), ("olla*.service", True), ("", False)]
)
def test_a_unit_is_a_whole_part_of_the_path(unit: str, inside: bool) -> None:
    name = Name("ollama", "/usr/bin/ollama", "/system.slice/ollama.service/model")
    assert in_units(name, [unit]) is inside


# --- memory pressure


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00", "12.5 %, limit 10 %"),
        ("some avg10=9.00 avg60=99.00 avg300=0.00 total=1\n", ""),
        ("full avg10=99.00\n", "memory pressure cannot be read"),
        ("some avg10=nan\n", "memory pressure cannot be read"),
        ("some avg10=\n", "memory pressure cannot be read"),
        ("", "memory pressure cannot be read"),
        (None, "memory pressure cannot be read: No such file"),
    ],
)
def test_memory_pressure_is_judged_where_a_limit_is_set(text: str | None, answer: str, tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    if text is not None:
        (tmp_path / "pressure/memory").write_text(text)
    for limit, expected in ((10.0, answer), (100.0, "")):
        settings = HostSettings(max_memory_pressure_percent=limit, min_memory_gb=0)
        sensor = HostSensor(CLOCK, settings, lambda: 0.0, sys_root=tmp_path, proc_root=tmp_path)
        reading = sensor.host(CLOCK.now_s())
        reason = reading.error if reading.value is None else reading.value.reason
        assert expected in reason
        assert bool(reason) is bool(expected)


@pytest.mark.skipif(not Path("/proc/pressure/memory").exists(), reason="this kernel has no PSI")
def test_this_kernels_own_pressure_is_understood() -> None:
    assert 0 <= pressure(Path("/proc/pressure/memory").read_text()) <= 100


# --- a site's own checks, as real processes


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


@pytest.mark.parametrize(
    ("checks", "unfit", "unknown"),
    [
        pytest.param([sh("exit 0")], "", "", id="fit"),
        pytest.param([sh("exit 1")], "is against it (host.checks)", "", id="unfit"),
        pytest.param([sh("exit 0"), sh("exit 3")], "check `/bin/sh -c 'exit 3'` is against it", "", id="one of two"),
        pytest.param([sh("kill -9 $$")], "", "died by signal 9", id="killed"),
        pytest.param([["/does/not/exist"]], "", "cannot be started: No such file or directory", id="missing"),
        pytest.param([["/etc/passwd"]], "", "cannot be started: Permission denied", id="no program"),
        pytest.param([sh("exec sleep 60")], "", "took longer than 0.3 s", id="hangs"),
        pytest.param([sh("yes; exit 0")], "", "took longer", id="talks for ever"),
        pytest.param([sh("read x; exit $?")], "is against it", "", id="has no input"),
        pytest.param([sh("test -z \"$NOTIFY_SOCKET\"")], "", "", id="does not speak to systemd for us"),
    ],
)
def test_a_check_answers_in_the_background(
    checks: list[list[str]], unfit: str, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")

    async def scene() -> None:
        wakes = 0

        def wake() -> None:
            nonlocal wakes
            wakes += 1

        site = SiteChecks(checks, CLOCK, 60.0, 0.3 if "took longer" in unknown else 60.0)
        await site.start(wake)
        await eventually(lambda: wakes >= len(checks))
        found = site.findings(CLOCK.now_s())
        for texts, expected in zip(found, (unfit, unknown), strict=True):
            assert expected in "; ".join(texts)
            assert bool(texts) is bool(expected)
        await site.stop()

    play(scene())


def test_until_it_has_answered_and_when_it_has_not_for_long_it_is_unknown(tmp_path: Path) -> None:
    async def scene() -> None:
        clock = ManualClock()
        site = SiteChecks([sh(f"while ! test -e {tmp_path}/go; do sleep 0.02; done")], clock, 60.0, 60.0)
        await site.start(lambda: None)
        assert "has not answered yet" in site.findings(clock.now_s())[1][0]
        (tmp_path / "go").touch()
        await eventually(lambda: site.findings(clock.now_s()) == FIT)
        (tmp_path / "go").unlink()
        clock.go(61.0)
        assert site.findings(clock.now_s()) == FIT  # the next run has begun, the last answer still holds
        clock.go(300.0)
        assert "has not answered for too long" in site.findings(clock.now_s())[1][0]
        await site.stop()

    play(scene())


def test_checks_run_no_more_often_than_they_should_and_only_when_asked(tmp_path: Path) -> None:
    async def scene() -> None:
        clock = ManualClock()
        site = SiteChecks([sh(f"echo >> {tmp_path}/runs")], clock, 60.0, 60.0)

        async def runs(count: int) -> None:
            await eventually(lambda: (tmp_path / "runs").exists() and len((tmp_path / "runs").read_text()) == count)
            await eventually(lambda: site.findings(clock.now_s()) == FIT)

        await site.start(lambda: None)
        await runs(1)
        clock.go(59.0)
        for _ in range(20):
            site.findings(clock.now_s())
            await asyncio.sleep(0.005)
        await runs(1)
        clock.go(2.0)
        site.findings(clock.now_s())
        await runs(2)
        await site.stop()

    play(scene())


def test_nothing_of_a_check_outlives_it(tmp_path: Path) -> None:
    """Neither what it has left behind when it ended, nor when it was killed, nor when the node stops."""
    async def scene() -> None:
        pids = tmp_path / "pids"
        leaves = f"sleep 60 & echo $! >> {pids}; "
        for script, stop, limit_s in (
            (leaves + "exit 0", False, 60.0), (leaves + "wait", False, 2.0), (leaves + "wait", True, 60.0),
        ):  # fmt: skip
            pids.unlink(missing_ok=True)
            wakes_seen: list[int] = []
            site = SiteChecks([sh(script)], CLOCK, 60.0, limit_s)
            await site.start(lambda wakes_seen=wakes_seen: wakes_seen.append(1))
            await eventually(lambda: pids.exists() and pids.read_text().endswith("\n"))
            if not stop:
                await eventually(lambda wakes_seen=wakes_seen: wakes_seen)
            else:
                await site.stop()
            left = int(pids.read_text())
            await eventually(lambda left=left: not alive(left))
            await site.stop()

    play(scene())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_check_that_cannot_be_watched_is_ended_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is free, for now."""
    before = set(psutil.Process().children())
    def refuse(pid: int) -> int:
        raise OSError(24, "Too many open files")

    async def scene() -> None:
        clock = ManualClock()
        site = SiteChecks([sh("exec sleep 60"), sh("exit 0")], clock, 60.0, 5.0)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", refuse)
            await site.start(lambda: None)
        assert [text.partition(" cannot ")[2] for text in site.findings(clock.now_s())[1]] == [
            "be started: Too many open files (host.checks)"
        ] * 2
        assert set(psutil.Process().children()) <= before
        clock.go(61.0)
        site.findings(clock.now_s())
        await eventually(lambda: len(site.findings(clock.now_s())[1]) == 1)
        await site.stop()

    play(scene())


def test_a_check_makes_the_host_unfit(tmp_path: Path) -> None:
    async def scene() -> None:
        settings = HostSettings(checks=[[sys.executable, "-c", "raise SystemExit(1)"]], min_memory_gb=0)
        sensor = HostSensor(CLOCK, settings, lambda: 0.0, sys_root=tmp_path)
        await sensor.start(lambda: None)

        def reason() -> str:
            reading = sensor.host(CLOCK.now_s())
            return reading.error if reading.value is None else reading.value.reason

        assert "has not answered yet" in reason()
        await eventually(lambda: "is against it" in reason())
        await sensor.stop()

    play(scene())


# --- a metered network, with a NetworkManager of ours on a real bus


class NetworkManager:
    """Answers for `Metered`, and signals its changes."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus, self.metered, self.refuses = bus, 4, False
        bus.add_message_handler(self._receive)

    @classmethod
    async def appear(cls, address: str) -> NetworkManager:
        bus = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect()
        there = cls(bus)
        await bus.request_name(NM)
        return there

    def become(self, metered: int) -> None:
        self.metered = metered
        changed = [NM, {"Metered": Variant("u", metered)}, []]
        signal = Message.new_signal(NM_PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", changed)
        self._bus.send(signal)

    def leave(self) -> None:
        self._bus.disconnect()

    def _receive(self, message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "Get":
            return None
        if self.refuses:
            return Message.new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "no")
        return Message.new_method_return(message, "v", [Variant("u", self.metered)])


def test_a_metered_network_is_followed(tmp_path: Path) -> None:
    async def scene() -> None:
        with PrivateBus(tmp_path) as private:
            bus = SystemBus(private.address, backoff_s=(0.02, 0.05))
            metered, wakes = Metered(bus), 0

            def wake() -> None:
                nonlocal wakes
                wakes += 1

            await metered.start(wake)
            assert "NetworkManager is not running" in str(metered.findings().unknown)
            manager = await NetworkManager.appear(private.address)
            await eventually(lambda: metered.findings() == FIT)
            for value, unfit, error in (
                (1, "the network is metered (host.allow_metered: false)", ""),
                (2, "", ""),
                (3, "the network is metered", ""),
                (0, "", "does not know whether the network is metered (host.allow_metered: false)"),
                (99, "", "does not know"),
                (4, "", ""),
            ):
                manager.become(value)

                def reported(unfit: str = unfit, error: str = error) -> bool:
                    found, expected = metered.findings(), (unfit, error)
                    return all(e in str(f) and bool(e) is bool(f) for e, f in zip(expected, found, strict=True))

                await eventually(reported)
            manager.refuses = True
            manager.become(1)
            await eventually(lambda: "refuses Get" in str(metered.findings().unknown))
            manager.leave()
            await eventually(lambda: "is not running" in str(metered.findings().unknown))
            await eventually(lambda: wakes >= 8)
            private.kill()
            await eventually(lambda: "bus" in str(metered.findings().unknown))
            await metered.stop()
            await bus.stop()

    play(scene())


# --- UPower, which also knows a UPS on USB


class UPowerDaemon(Service):
    """`battery` None: mains; else the percentage of what feeds the machine."""

    def __init__(self, address: str, battery: float | None) -> None:
        super().__init__(address, UPOWER)
        self.battery = battery
        self.answers["GetAll"] = lambda m: ("a{sv}", [self._properties(m.path)])

    def _properties(self, path: str) -> dict[str, Variant]:
        if path == UPOWER_PATH:
            return {"OnBattery": Variant("b", self.battery is not None)}
        return {"Percentage": Variant("d", self.battery or 0.0), "IsPresent": Variant("b", self.battery is not None)}

    async def become(self, battery: float | None) -> None:
        was, self.battery = self.battery, battery
        path, name = (DISPLAY_PATH, "Percentage") if was and battery else (UPOWER_PATH, "OnBattery")
        changed = [UPOWER, {name: Variant("s", "")}, []]
        await self.signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", *changed)


ON_BATTERY = "on battery, says UPower (host.on_battery: never)"
LOW = "battery at 40 %, 50 % required (host.min_battery_percent)"


@pytest.mark.parametrize(("on_battery", "full", "empty"), [("never", ON_BATTERY, ON_BATTERY), ("allow", "", LOW)])
def test_a_ups_in_a_power_cut_is_a_battery(on_battery: str, full: str, empty: str, tmp_path: Path) -> None:
    """To the kernel it is no power supply; what UPower says is followed without a question in between."""

    async def scene() -> None:
        with PrivateBus(tmp_path) as private:
            bus, wakes = SystemBus(private.address, backoff_s=(0.02, 0.05)), [0]
            upower = UPower(bus)
            settings = HostSettings(on_battery=on_battery, min_memory_gb=0)
            sensor = HostSensor(CLOCK, settings, lambda: 0.0, upower=upower, sys_root=tmp_path)

            def reason() -> str:
                host = sensor.host(CLOCK.now_s())
                return host.error if host.value is None else host.value.reason

            def wake() -> None:
                wakes[0] += 1

            there = await UPowerDaemon(private.address, 80.0).start()
            await sensor.start(wake)
            assert reason() == full
            await there.become(None)
            await eventually(lambda: reason() == "", "the mains are back")
            await there.become(40.0)
            await eventually(lambda: reason() == empty, "a power cut, and it is nearly empty")
            await there.become(90.0)
            await eventually(lambda: reason() == full, "it has charged")
            assert wakes[0] >= 3
            there.answers["GetAll"] = "org.freedesktop.DBus.Error.Failed"
            await there.become(None)
            await eventually(lambda: "power supply unknown: org.freedesktop.UPower refuses GetAll" in reason(), "no answer")
            await there.stop()
            await eventually(lambda: reason() == "", "without UPower the kernel alone is asked")
            await sensor.stop()
            await bus.stop()

    play(scene())


@pytest.mark.parametrize(
    ("kernel", "upower", "is_so"),
    [
        (Power(), Power(), Power()),
        (Power(), Power(True, True, 70.0, "UPower"), Power(True, True, 70.0, "UPower")),
        (Power(False, False, 100.0), Power(True, True, 70.0, "UPower"), Power(True, True, 100.0, "UPower")),
        (Power(True, True, 60.0), Power(), Power(True, True, 60.0)),
        (Power(True, True, 60.0), Power(True, True, 70.0, "UPower"), Power(True, True, 60.0)),
    ],
)
def test_who_says_on_battery_is_believed(kernel: Power, upower: Power, is_so: Power) -> None:
    assert both(kernel, upower) == is_so
