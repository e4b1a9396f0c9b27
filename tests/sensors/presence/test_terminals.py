"""Terminals as signs of the person (R9), on real pseudo-terminals; those that need a given access time are linked into
a folder that plays /dev."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.own_terminals import own_terminals
from support.waiting import eventually, play

from states.observation import NEVER
from supervisor.linux.clock import SystemClock
from supervisor.sensors.presence import terminals as module
from supervisor.sensors.presence.agent_reports import SessionOwners
from supervisor.sensors.presence.terminals import Terminals

BOOT_WALL_S = 1_700_000_000.0  # wall time at boot, in the played world
MINUTE = 60.0


class PlayedClock:
    """Both clocks in the test's hand."""

    def __init__(self) -> None:
        self.boot_s, self.offset_s = 3600.0, BOOT_WALL_S

    def now_s(self) -> float:
        return self.boot_s

    def wall_s(self) -> float:
        return self.boot_s + self.offset_s


class Dev:
    """A folder that plays /dev; its terminals are real pseudo-terminals under other names."""

    def __init__(self, folder: Path) -> None:
        self.root, self.clock = folder, PlayedClock()
        (folder / "pts").mkdir()
        self._fds: list[int] = []
        self._slaves: dict[str, str] = {}

    def terminal(self, name: str, idle_s: float = 0.0) -> int:
        """A terminal that was last typed on `idle_s` seconds ago; returns its keyboard's end."""
        master, slave = os.openpty()
        self._fds += [master, slave]
        self._slaves[name] = os.ttyname(slave)
        self.typed(name, idle_s)
        (self.root / name).symlink_to(self._slaves[name])
        return master

    def slave(self, name: str) -> int:
        """The program's end of it."""
        return self._fds[2 * list(self._slaves).index(name) + 1]

    def typed(self, name: str, idle_s: float = 0.0) -> None:
        """Its access time says so, by the wall clock as it is now."""
        at_ns = round((self.clock.wall_s() - idle_s) * 1e9)
        os.utime(self._slaves[name], ns=(at_ns, at_ns))

    def write(self, name: str) -> None:
        """Output on it: the modification time moves."""
        at = os.stat(self._slaves[name])
        os.utime(self._slaves[name], ns=(at.st_atime_ns, round(self.clock.wall_s() * 1e9)))

    def looks(self, sensor: Terminals) -> tuple[float, str]:
        """Seconds since the last sign, and the sign."""
        presence = sensor.latest(self.clock.now_s())
        assert presence.error == ""
        return round(self.clock.now_s() - presence.last_sign_at_s, 3), presence.sign

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def dev(tmp_path: Path) -> Any:
    folder = tmp_path / "dev"
    folder.mkdir()
    there = Dev(folder)
    yield there
    there.close()


@contextlib.asynccontextmanager
async def watching(sensor: Terminals, wake: Callable[[], None] = lambda: None) -> AsyncIterator[Terminals]:
    await sensor.start(wake)
    try:
        yield sensor
    finally:
        await sensor.stop()


def test_the_newest_of_all_terminals_counts(dev: Dev) -> None:
    """With its name; output, ptmx and what is no terminal say nothing."""
    dev.terminal("pts/3", 5 * MINUTE)
    dev.terminal("tty1", 2 * MINUTE)
    dev.terminal("console", 7 * MINUTE)
    dev.terminal("pts/ptmx", 0)
    dev.terminal("ttyprintk", 0)
    (dev.root / "pts/9").write_text("a file, not a device")
    sensor = Terminals(dev.clock, dev.root)
    assert dev.looks(sensor) == (2 * MINUTE, "user active on tty1")
    dev.write("pts/3")
    dev.clock.boot_s += 10
    assert dev.looks(sensor) == (2 * MINUTE + 10, "user active on tty1")
    dev.clock.boot_s += 10
    dev.typed("pts/3", 1)
    assert dev.looks(sensor) == (1, "user active on pts/3")
    assert sensor.latest(dev.clock.now_s()).present == ""


def test_nobody_at_any_terminal(dev: Dev) -> None:
    """No terminal, no sign."""
    presence = Terminals(dev.clock, dev.root).latest(dev.clock.now_s())
    assert (presence.source, presence.last_sign_at_s, presence.error) == ("terminals", NEVER, "")


def test_a_terminal_that_comes_or_goes_is_a_sign_at_once(dev: Dev) -> None:
    """Whatever its access time says."""
    dev.terminal("pts/1", 30 * MINUTE)
    sensor = Terminals(dev.clock, dev.root)
    assert dev.looks(sensor) == (30 * MINUTE, "user active on pts/1")
    dev.terminal("pts/2", 30 * MINUTE)
    assert dev.looks(sensor) == (0, "terminal pts/2 was opened")
    dev.clock.boot_s += 60
    assert dev.looks(sensor) == (60, "terminal pts/2 was opened")
    (dev.root / "pts/1").unlink()
    assert dev.looks(sensor) == (0, "terminal pts/1 was closed")


MONITOR = 1005


@pytest.mark.skipif(os.getuid() != 0, reason="gives terminals to another user, so it needs root")
@pytest.mark.parametrize("by", ["user", "session"])
def test_the_terminal_of_who_is_no_person_comes_is_used_and_goes_without_a_sign(dev: Dev, by: str) -> None:
    """As sshd does it: it makes the terminal as root, gives it to its user, takes it back, and closes it."""

    async def scene() -> None:
        owners = SessionOwners()
        owners.ignored_uids = {MONITOR} if by == "user" else set()
        dev.terminal("pts/1", 30 * MINUTE)
        woken = asyncio.Event()
        async with watching(Terminals(dev.clock, dev.root, owners, exceptions=True), woken.set) as sensor:
            master = dev.terminal("pts/2")
            await asyncio.wait_for(woken.wait(), 5)
            assert dev.looks(sensor) == (30 * MINUTE, "user active on pts/1"), "not yet: whose will it be?"
            if by == "user":
                os.chown(os.ttyname(dev.slave("pts/2")), MONITOR, -1)
            else:
                owners.ignored_terminals = frozenset({"pts/2"})
            dev.clock.boot_s += 5
            os.write(master, b"x\n")
            os.read(dev.slave("pts/2"), 2)
            await asyncio.sleep(0)
            dev.typed("pts/2")
            assert dev.looks(sensor)[1] == "user active on pts/1"
            os.chown(os.ttyname(dev.slave("pts/2")), 0, -1)
            owners.ignored_terminals = frozenset()
            assert dev.looks(sensor)[1] == "user active on pts/1"
            (dev.root / "pts/2").unlink()
            dev.clock.boot_s += 5
            assert dev.looks(sensor) == (30 * MINUTE + 10, "user active on pts/1")
            dev.terminal("pts/2")  # somebody else's now
            dev.looks(sensor)
            dev.clock.boot_s += 2
            assert dev.looks(sensor) == (2, "terminal pts/2 was opened"), "since it came"

    play(scene())


@own_terminals
def test_a_new_terminal_counts_a_moment_later_where_there_are_exceptions() -> None:
    """Nothing else may happen then, so the sensor itself wakes the loop."""
    clock = SystemClock()
    wakes: list[float] = []

    async def scene() -> None:
        async with watching(Terminals(clock, exceptions=True), lambda: wakes.append(clock.now_s())) as sensor:
            began_s = clock.now_s()
            master, slave = os.openpty()
            await eventually(lambda: wakes, "the event")
            assert sensor.latest(clock.now_s()).last_sign_at_s < began_s
            await eventually(lambda: len(wakes) > 1, "the claim's end")
            assert began_s <= sensor.latest(clock.now_s()).last_sign_at_s < began_s + 0.5
            os.close(slave)
            os.close(master)

    play(scene())


def test_a_console_waits_for_the_look_after_a_sign_that_was_told(dev: Dev) -> None:
    """And loses nothing by it: what was typed on it meanwhile is reported then, with its own time; a new one, too."""

    async def scene() -> None:
        dev.terminal("tty1", 30 * MINUTE)
        master = dev.terminal("pts/1", 30 * MINUTE)
        woken = asyncio.Event()
        async with watching(Terminals(dev.clock, dev.root), woken.set) as sensor:
            dev.clock.boot_s += 60
            os.write(master, b"x\n")
            os.read(dev.slave("pts/1"), 2)
            await woken.wait()
            dev.typed("pts/1", 0)
            dev.clock.boot_s += 0.5
            dev.typed("tty1", 0)
            dev.terminal("tty2", 5)
            dev.clock.boot_s += 0.25
            assert dev.looks(sensor) == (0.75, "user active on pts/1")
            dev.clock.boot_s += 1
            assert dev.looks(sensor) == (0, "terminal tty2 was opened")
            dev.clock.boot_s += 3
            assert dev.looks(sensor) == (3, "terminal tty2 was opened")
            assert sensor._known.keys() == {"tty1", "tty2", "pts/1"}

    play(scene())


def test_what_a_look_has_taken_itself_keeps_no_console_from_the_next_one(dev: Dev) -> None:
    """That one may be the look that decides, the whole idle time later."""

    async def scene() -> None:
        dev.terminal("tty1", 30 * MINUTE)
        master = dev.terminal("pts/1", 30 * MINUTE)
        async with watching(Terminals(dev.clock, dev.root)) as sensor:
            dev.clock.boot_s += 60
            os.write(master, b"x\n")
            os.read(dev.slave("pts/1"), 2)
            assert dev.looks(sensor) == (0, "user active on pts/1")  # before the loop could report it
            dev.clock.boot_s += 600
            dev.typed("tty1", 5)
            assert dev.looks(sensor) == (5, "user active on tty1")

    play(scene())


@pytest.mark.parametrize("jump_s", [-7200.0, -30.0, 30.0, 7200.0, 86400.0 * 365])
def test_a_jump_of_the_wall_clock_changes_nothing(dev: Dev, jump_s: float) -> None:
    """A sign keeps its time; one that comes with the jump is no older than the last look."""
    dev.terminal("pts/1", 5 * MINUTE)
    sensor = Terminals(dev.clock, dev.root)
    assert dev.looks(sensor)[0] == 5 * MINUTE
    dev.clock.offset_s += jump_s
    dev.clock.boot_s += 10
    assert dev.looks(sensor)[0] == 5 * MINUTE + 10
    dev.typed("pts/1")  # and then the clock jumps again, before the next look
    dev.clock.offset_s += jump_s
    dev.clock.boot_s += 20
    assert dev.looks(sensor)[0] <= 20


@pytest.mark.parametrize(("idle_s", "seen_s"), [(-3600, 0), (-1, 0), (3599, 3599), (3601, 0), (86400 * 400, 0)])
def test_times_that_cannot_be_count_as_now(dev: Dev, idle_s: float, seen_s: float) -> None:
    """In the future, or from before the boot an hour ago: the clock was set since, so nobody knows when (R12)."""
    dev.terminal("pts/1", idle_s)
    assert dev.looks(Terminals(dev.clock, dev.root))[0] == seen_s


@pytest.mark.parametrize("wrong_s", [-3600.0, 0.0, 7200.0])
def test_consoles_never_typed_on_stand_for_the_boot(dev: Dev, wrong_s: float) -> None:
    """Made with all nodes by a clock that was wrong then; one typed on since is judged by its time."""
    made_s = BOOT_WALL_S + wrong_s
    (dev.root / "full").touch()
    os.utime(dev.root / "full", (made_s, made_s))
    dev.terminal("tty1", dev.clock.wall_s() - made_s - 1)
    dev.terminal("tty63", dev.clock.wall_s() - made_s)
    sensor = Terminals(dev.clock, dev.root)
    assert dev.looks(sensor)[0] == 3600
    dev.clock.boot_s += 10
    dev.typed("tty1", 2)
    assert dev.looks(sensor) == (2, "user active on tty1")


def test_a_console_typed_on_after_a_clock_was_set_back_is_somebodys(dev: Dev) -> None:
    """Another system keeps local time in the machine's clock: the boot was hours ahead, and what was typed since looks
    older than the nodes."""
    made_s = BOOT_WALL_S + 7200
    (dev.root / "full").touch()
    os.utime(dev.root / "full", (made_s, made_s))
    dev.terminal("tty1", 300)
    assert dev.looks(Terminals(dev.clock, dev.root)) == (300, "user active on tty1")


def test_a_terminal_is_no_older_than_the_look_before_its_change(dev: Dev) -> None:
    """Between two looks ten seconds apart somebody typed: at its time, which lies between them."""
    dev.terminal("pts/1", 20 * MINUTE)
    sensor = Terminals(dev.clock, dev.root)
    dev.looks(sensor)
    dev.clock.boot_s += 10
    dev.typed("pts/1", 4)
    assert dev.looks(sensor) == (4, "user active on pts/1")


def test_a_serial_line_of_a_machine_is_no_terminal(dev: Dev, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group dialout has the UPS and the GPS; getty and login give their line to group tty."""
    dev.terminal("ttyS0", 60)
    assert dev.looks(Terminals(dev.clock, dev.root)) == (60, "user active on ttyS0")
    group = module.grp.getgrgid(os.stat(dev.root / "ttyS0").st_gid).gr_name
    monkeypatch.setattr(module, "MACHINES", {group})
    assert dev.looks(Terminals(dev.clock, dev.root)) == (float("inf"), "")


def test_no_terminals_to_be_seen_is_an_error(dev: Dev) -> None:
    """Unknown, with the reason (R12); the sign that was known stays, and all is well when they are back."""
    dev.terminal("tty1", 60)
    sensor = Terminals(dev.clock, dev.root)
    dev.looks(sensor)
    (dev.root / "pts").rmdir()
    presence = sensor.latest(dev.clock.now_s())
    remedy = "mount devpts there, or set presence.terminals to false in node.yaml"
    assert presence.error == f"terminals cannot be seen: No such file or directory ({dev.root}/pts): {remedy}"
    assert presence.last_sign_at_s == dev.clock.now_s() - 60
    (dev.root / "pts").mkdir()
    assert dev.looks(sensor) == (60, "user active on tty1")


@own_terminals
def test_typing_is_seen_at_once_where_we_may_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real terminal in the real /dev: a key that is read wakes the tick, well within the kernel's 8-second step."""
    clock = SystemClock()
    monkeypatch.setattr(module, "QUIET_S", 60.0)
    master, slave = os.openpty()
    name = os.ttyname(slave).removeprefix("/dev/")
    wakes: list[float] = []

    async def scene() -> None:
        async with watching(Terminals(clock), lambda: wakes.append(clock.now_s())) as sensor:
            os.write(slave, b"output\n")
            os.read(master, 100)
            assert not wakes
            typed_at_s = clock.now_s()
            os.write(master, b"x\n")
            os.read(slave, 100)
            await eventually(lambda: wakes)
            presence = sensor.latest(clock.now_s())
            assert (typed_at_s <= presence.last_sign_at_s, presence.sign) == (True, f"user active on {name}")
            assert sensor._watcher.is_open
            assert sensor._watcher.read() == []  # the look itself, which lists, wakes nobody again
            typed_at_s = clock.now_s()
            os.write(master, b"y\n")
            os.read(slave, 100)
            await eventually(lambda: sensor._sign_at_s >= typed_at_s)
            assert len(wakes) == 1  # the sign is noted; right after the first it wakes nobody

    try:
        play(scene())
    finally:
        os.close(master)
        os.close(slave)


@own_terminals
def test_terminals_that_come_and_go_wake_the_tick() -> None:
    """Real ones: made, opened, closed. The sign is there before anybody looks."""
    clock = SystemClock()
    wakes: list[float] = []

    async def scene() -> None:
        async with watching(Terminals(clock), lambda: wakes.append(clock.now_s())) as sensor:
            began_s = clock.now_s()
            master, slave = os.openpty()
            name = os.ttyname(slave).removeprefix("/dev/")
            await eventually(lambda: wakes)
            presence = sensor.latest(clock.now_s())
            assert presence.last_sign_at_s >= began_s
            assert presence.sign == f"terminal {name} was opened"
            closed_s, before = clock.now_s(), len(wakes)
            os.close(slave)
            os.close(master)
            await eventually(lambda: len(wakes) > before)
            assert sensor.latest(clock.now_s()).last_sign_at_s >= closed_s

    play(scene())


@own_terminals
def test_who_only_lists_or_opens_terminals_wakes_nobody() -> None:
    """`ps`, `who` and completion list /dev/pts all day: not even an event comes of it."""
    clock = SystemClock()
    wakes: list[float] = []

    async def scene() -> None:
        master, slave = os.openpty()
        async with watching(Terminals(clock), lambda: wakes.append(clock.now_s())) as sensor:
            sensor.latest(clock.now_s())
            for _ in range(20):
                os.listdir("/dev/pts")
                os.close(os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY))
            assert sensor._watcher.is_open
            assert sensor._watcher.read() == []
            assert not wakes
        os.close(master)
        os.close(slave)

    play(scene())


@own_terminals
def test_a_name_used_again_is_watched_again(dev: Dev) -> None:
    """A closed terminal's number goes to the next one; its watch must not be lost with the first."""
    clock = SystemClock()

    async def scene() -> None:
        async with watching(Terminals(clock)) as sensor:
            master, slave = os.openpty()
            name = os.ttyname(slave)
            await eventually(lambda: name in sensor._watcher.watched or sensor.latest(clock.now_s()) is None)
            os.close(slave)
            os.close(master)
            master, slave = os.openpty()
            assert os.ttyname(slave) == name
            await asyncio.sleep(0)
            sensor.latest(clock.now_s())
            await eventually(lambda: sensor.latest(clock.now_s()) and name in sensor._watcher.watched)
            typed_at_s = clock.now_s()
            os.write(master, b"x\n")
            os.read(slave, 100)
            await eventually(lambda: sensor.latest(clock.now_s()).last_sign_at_s >= typed_at_s)
            os.close(slave)
            os.close(master)

    play(scene())
