"""The bus and a logind that fail in every way: each is an error with its reason, none hangs, each heals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import BusType, Message, Variant
from dbus_fast.aio import MessageBus
from support.login1 import FakeLogin1, PrivateBus, session
from support.waiting import eventually

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import SystemClock
from supervisor.linux.dbus import LOGIN1, LOGIN1_MANAGER, LOGIN1_PATH, PROPERTIES, BusError, SystemBus, inhibit
from supervisor.linux.proc import Name
from supervisor.sensors.base import RESUME_SIGN, Presence
from supervisor.sensors.presence import logind as sessions_module
from supervisor.sensors.presence.agent_reports import Proof
from supervisor.sensors.presence.logind import BACK_SIGN, LID_SIGN, START_SIGN, UNDECIDED, UPOWER, Sessions
from supervisor.sensors.presence.session_policy import LID_CLOSED

CLOCK = SystemClock()
QUICK = (0.01, 0.05)
ONE = LOGIN1_PATH + "/session/_33"
SUSPENDING = "the machine is going to sleep"


@pytest.fixture
def private_bus(tmp_path: Path) -> Iterator[PrivateBus]:
    with PrivateBus(tmp_path) as daemon:
        yield daemon


class Watched:
    """The sensor with its bus, and how often it called wake."""

    def __init__(self, address: str, **options: Any) -> None:
        self.bus = SystemBus(address, backoff_s=QUICK)
        names = ("strict", "ignore_inhibitors", "ignore_commands")
        settings = PresenceSettings(**{k: options.pop(k) for k in names if k in options})
        self.sensor = Sessions(self.bus, CLOCK, settings, boot_offset_s=lambda: 0.0, **{"max_age_s": 80.0, **options})
        self.wakes = 0

    @property
    def now(self) -> Presence:
        return self.sensor.latest(CLOCK.now_s())

    def _wake(self) -> None:
        self.wakes += 1

    async def __aenter__(self) -> Watched:
        await self.sensor.start(self._wake)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sensor.stop()
        await self.bus.stop()


@contextlib.asynccontextmanager
async def logind(address: str) -> AsyncIterator[FakeLogin1]:
    fake = await FakeLogin1(address).start()
    try:
        yield fake
    finally:
        await fake.stop()


def test_no_bus_is_an_error_with_its_mend_and_the_sensor_finds_it_later(tmp_path: Path) -> None:
    daemon = PrivateBus(tmp_path)

    async def story() -> None:
        async with Watched(daemon.address) as watched:
            assert watched.now.error == "no system bus (No such file or directory): start dbus"
            with daemon.start():
                await eventually(lambda: "logind is not running" in watched.now.error, "a bus without logind")
                async with logind(daemon.address):
                    await eventually(lambda: not watched.now.error, "logind found")
                    assert watched.wakes

    asyncio.run(story())


@pytest.mark.parametrize("address", ["nonsense", "unix:nonsense", "unix:path=/dev/null", "carrier-pigeon:path=/x"])
def test_an_address_that_leads_nowhere_is_an_error(address: str) -> None:
    async def story() -> None:
        async with Watched(address) as watched:
            assert re.fullmatch(r"no system bus \([^\n]+\): start dbus", watched.now.error)

    asyncio.run(story())


def test_a_bus_that_accepts_and_says_nothing_is_an_error_in_time(tmp_path: Path) -> None:
    async def story() -> None:
        async with Watched(f"unix:path={tmp_path / 'bus'}") as watched:
            assert watched.now.error == "no system bus (no answer): start dbus"

    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "bus"))
        mute.listen()
        begun = time.monotonic()
        asyncio.run(story())
        assert time.monotonic() - begun < 30  # not for ever


def test_the_address_in_the_environment_is_taken(private_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", private_bus.address)

    async def story() -> None:
        bus = SystemBus()
        await bus.start()
        assert bus.error == ""
        await bus.stop()
        assert bus.error == "the node has disconnected from the system bus"

    asyncio.run(story())


def test_the_bus_dies_and_comes_back(private_bus: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with Watched(private_bus.address) as watched:
            async with logind(private_bus.address) as fake:
                fake.sessions[ONE] = session()
                await eventually(lambda: watched.now.present, "the session")
                private_bus.kill()
                await eventually(lambda: "system bus" in watched.now.error, "the death of the bus")
                with pytest.raises(BusError, match="system bus"):
                    await watched.bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListSessions")
            private_bus.start()
            async with logind(private_bus.address):
                await eventually(lambda: not watched.now.error, "the new bus")
                assert watched.now.present == ""
                assert watched.now.sign == "anna logged out on seat0"

    asyncio.run(story())
    gc.collect()
    assert caplog.text == ""


FAULTS: list[tuple[str, str, str | tuple[str, list[Any]], str]] = [
    ("error", "ListSessions", "org.freedesktop.DBus.Error.Failed", "logind refuses ListSessions: as planned"),
    ("refusal", "ListSessions", "org.freedesktop.DBus.Error.AccessDenied", "logind refuses ListSessions to this user"),
    ("no reply", "GetAll", "org.freedesktop.DBus.Error.NoReply", "logind went away during GetAll"),
    ("other form", "ListSessions", ("s", ["none"]), "logind answered ListSessions with 's', not with 'a(susso)'"),
    ("nothing", "ListSessions", ("", []), "logind answered ListSessions with 'nothing', not with 'a(susso)'"),
    ("no session", "GetAll", ("a{sv}", [{"Id": Variant("s", "3")}]), "a session in a way that this node does not know"),
]


@pytest.mark.parametrize(("member", "reply", "reason"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_of_logind_is_an_error_and_passes(
    private_bus: PrivateBus, member: str, reply: str | tuple[str, list[Any]], reason: str
) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.sessions[ONE] = session()
            fake.replies[member] = reply
            async with Watched(private_bus.address) as watched:
                assert reason in watched.now.error
                assert "systemctl status systemd-logind" in watched.now.error
                fake.replies.clear()
                await fake.change(ONE, IdleHint=False)
                await eventually(lambda: not watched.now.error, "recovery")
                assert watched.now.present

    asyncio.run(story())


def test_a_logind_that_hangs_is_an_error_by_age(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address, max_age_s=2.0) as watched:
            assert watched.now.error == ""
            fake.delays["GetAll"] = 3600.0
            await eventually(lambda: "has not answered for" in watched.now.error, "the age of the last answer")
            assert watched.now.read_at_s < CLOCK.now_s() - 2.0

    asyncio.run(story())


def test_a_call_has_a_deadline_and_a_lock_that_comes_late_is_not_kept(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address, delay_locks=False) as watched:
            fake.delays["Inhibit"] = 1.5
            with pytest.raises(BusError, match=r"logind did not answer Inhibit within 0\.05 s"):
                await watched.bus.call(
                    LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "Inhibit", "sleep", "w", "y", "block",
                    signature="ssss", expect="h", timeout_s=0.05,
                )  # fmt: skip
            assert fake.locks()
            await eventually(lambda: not fake.locks(), "the late descriptor closed")

    asyncio.run(story())


def test_a_lock_is_not_inherited_by_a_task(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address, delay_locks=False) as watched:
            lock = await inhibit(watched.bus, "sleep", "w", "y", "block")
            assert not os.get_inheritable(lock.fd)
            lock.close()
            lock.close()
            await eventually(lambda: not fake.locks(), "the lock given up")

    asyncio.run(story())


def test_a_signal_counts_only_from_logind(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address) as watched:
            stranger = await MessageBus(bus_address=private_bus.address, bus_type=BusType.SYSTEM).connect()
            for destination in (None, watched.bus._bus.unique_name):  # type: ignore[union-attr]
                forged = Message.new_signal(LOGIN1_PATH, LOGIN1_MANAGER, "PrepareForSleep", "b", [True])
                forged.destination = destination
                await stranger.send(forged)
            await fake.prepare("Shutdown", True)  # comes after the forged ones
            await eventually(lambda: watched.sensor.going_down, "the true signal")
            assert watched.sensor.going_down == "the machine is shutting down"
            stranger.disconnect()
            await stranger.wait_for_disconnect()

    asyncio.run(story())


def test_delay_locks_are_held_given_up_and_taken_again(private_bus: PrivateBus) -> None:
    def kinds(fake: FakeLogin1) -> list[str]:
        return sorted(entry[0] for entry in fake.locks())

    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address) as watched:
            await eventually(lambda: kinds(fake) == ["shutdown", "sleep"], "one lock a kind")
            assert {entry[3] for entry in fake.locks()} == {"delay"}
            watched.sensor.release_delay()  # nothing is going down: they stay
            for _ in range(2):  # a second suspend, at once, must not slip through
                assert watched.sensor.announced_s is None
                before_s = CLOCK.now_s()
                await fake.prepare("Sleep", True)
                await eventually(lambda: watched.sensor.going_down == SUSPENDING, "going down")
                announced_s = watched.sensor.announced_s
                assert before_s <= (announced_s or 0.0) <= CLOCK.now_s()
                assert kinds(fake) == ["shutdown", "sleep"]
                await watched.sensor._ask_manager()
                assert watched.sensor.announced_s == announced_s, "logind's delay counts from its first word"
                watched.sensor.release_delay()
                watched.sensor.release_delay()
                await eventually(lambda: kinds(fake) == ["shutdown"], "the lock on sleep given up")
                await fake.prepare("Sleep", False)
                await eventually(lambda: kinds(fake) == ["shutdown", "sleep"], "the lock on sleep taken again")
                assert watched.sensor.going_down == ""

    asyncio.run(story())


def test_a_fault_of_ours_in_a_look_is_unknown_and_no_end(private_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another look it would stay so until the node is started again."""
    monkeypatch.setattr(sessions_module, "RETRY_S", 0.05)
    broken = True
    compare = Sessions._compare

    def fail(sensor: Sessions, *arguments: Any) -> None:
        if broken:
            raise ZeroDivisionError("a fault of ours")
        compare(sensor, *arguments)

    monkeypatch.setattr(Sessions, "_compare", fail)

    async def story() -> None:
        nonlocal broken
        async with logind(private_bus.address), Watched(private_bus.address) as watched:
            assert watched.now.error == "sessions cannot be read, a fault of this node (ZeroDivisionError): please report it"
            broken = False
            await eventually(lambda: not watched.now.error, "another look")

    asyncio.run(story())


def test_going_down_is_read_on_connecting(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.manager["PreparingForSleep"] = True
            async with Watched(private_bus.address) as watched:
                assert watched.sensor.going_down == SUSPENDING
                assert not any(entry[0] == "sleep" for entry in fake.locks())
                await fake.prepare("Sleep", False)
                await eventually(lambda: len(fake.locks()) == 2, "both locks after resume")

    asyncio.run(story())


def test_a_signal_is_newer_than_a_property_that_was_asked_for_before_it(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address) as watched:
            fake.delays["GetAll"] = 0.1  # the answer is made at once, and arrives after the signal
            await fake.emit(LOGIN1_PATH, LOGIN1_MANAGER, "SeatNew", "so", "seat1", "/seat1")
            asked = fake.calls.count("GetAll")
            await eventually(lambda: fake.calls.count("GetAll") > asked, "the question")
            await fake.prepare("Sleep", True)
            await eventually(lambda: watched.sensor.going_down, "the signal")
            fake.delays.clear()
            await asyncio.sleep(0.15)
            assert watched.sensor.going_down == SUSPENDING

    asyncio.run(story())


def test_refused_delay_locks_are_said_and_do_not_block(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.replies["Inhibit"] = "org.freedesktop.DBus.Error.AccessDenied"
            async with Watched(private_bus.address) as watched:
                await eventually(lambda: "a task may be cut short" in watched.sensor.delay_error, "the refusal")
                assert watched.now.error == ""

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["sleep", "shutdown"])
def test_one_delay_lock_of_both_is_not_all_well(kind: str, private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.refused_kinds = {kind}
            async with Watched(private_bus.address) as watched:
                delays = watched.sensor._delays
                assert delays
                await eventually(lambda: len(delays._held) == 1 and not delays._taking, "the other one")
                assert f"no delay lock on {kind}" in watched.sensor.delay_error

    asyncio.run(story())


def test_a_delay_lock_that_was_refused_once_is_asked_for_again(private_bus: PrivateBus) -> None:
    """On a machine where nobody logs in, no signal of logind's would be the occasion."""

    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.replies["Inhibit"] = "org.freedesktop.DBus.Error.LimitsExceeded"
            async with Watched(private_bus.address, max_age_s=0.3) as watched:
                await eventually(lambda: watched.sensor.delay_error, "the refusal")
                del fake.replies["Inhibit"]
                await eventually(lambda: len(fake.locks()) == 2 and not watched.sensor.delay_error, "both locks")

    asyncio.run(story())


def test_a_lid_is_found_without_a_signal(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address, max_age_s=0.3) as watched:
            fake.manager["LidClosed"] = True
            wakes = watched.wakes
            await eventually(lambda: watched.sensor.going_down == LID_CLOSED, "the lid")
            assert watched.wakes > wakes
            fake.manager["LidClosed"] = False
            await eventually(lambda: not watched.sensor.going_down, "the lid open")

    asyncio.run(story())


def test_the_lids_switch_is_heard_at_once_and_an_opened_lid_is_a_sign(private_bus: PrivateBus) -> None:
    """Without UPower; logind may read the switch a moment later than the node."""

    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address, max_age_s=1000) as watched:
            fake.manager["LidClosed"] = True
            watched.sensor.lid_moved()
            await eventually(lambda: watched.sensor.going_down == LID_CLOSED, "the lid")
            looked_s = watched.now.read_at_s
            watched.sensor.lid_moved()
            await eventually(lambda: watched.now.read_at_s > looked_s, "a look before logind knows")
            fake.manager["LidClosed"] = False
            await eventually(lambda: watched.now.sign == LID_SIGN, "the sign")
            assert not watched.sensor.going_down
            assert looked_s < watched.now.last_sign_at_s

    asyncio.run(story())


@pytest.mark.parametrize("signal", [True, False], ids=["by its signal", "by its property"])
def test_a_resume_is_a_sign(private_bus: PrivateBus, signal: bool) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address, max_age_s=0.3) as watched:
            await fake.prepare("Sleep", True)
            await eventually(lambda: watched.sensor.going_down, "the announcement")
            assert watched.now.sign == START_SIGN
            woke_s = CLOCK.now_s()
            if signal:
                await fake.prepare("Sleep", False)
            else:
                fake.manager["PreparingForSleep"] = False
            await eventually(lambda: watched.now.sign == RESUME_SIGN, "the sign")
            assert watched.now.last_sign_at_s >= woke_s

    asyncio.run(story())


def test_upower_tells_of_the_lid_and_a_charge_that_falls_is_no_cause_to_look(private_bus: PrivateBus) -> None:
    """A laptop's batteries, and its mouse's, change each half minute."""

    async def story() -> None:
        upower = await MessageBus(bus_address=private_bus.address, bus_type=BusType.SYSTEM).connect()
        await upower.request_name(UPOWER)

        async def announce(path: str, name: str, value: Variant) -> None:
            body = [f"{UPOWER}.Device" if "devices" in path else UPOWER, {name: value}, []]
            await upower.send(Message.new_signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body))

        async with logind(private_bus.address) as fake, Watched(private_bus.address) as watched:
            await eventually(lambda: len(fake.locks()) == 2 and not watched.sensor._look_now.is_set(), "rest")
            asked = len(fake.calls)
            await announce("/org/freedesktop/UPower/devices/battery_BAT0", "Percentage", Variant("d", 79.0))
            fake.manager["LidClosed"] = True
            for _ in range(3):  # its answers come after that signal
                await watched.bus.properties(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER)
            assert len(fake.calls) == asked + 3
            await announce("/org/freedesktop/UPower", "LidIsClosed", Variant("b", True))
            await eventually(lambda: watched.sensor.going_down == LID_CLOSED, "the lid")
        upower.disconnect()
        await asyncio.gather(upower.wait_for_disconnect(), return_exceptions=True)

    asyncio.run(story())


def test_the_start_is_a_sign_unless_it_is_a_single_look(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address):
            begun = CLOCK.now_s()
            async with Watched(private_bus.address) as watched:
                assert begun <= watched.now.last_sign_at_s <= CLOCK.now_s()
                assert (watched.now.sign, watched.now.quality) == (START_SIGN, "assumed")
            async with Watched(private_bus.address, start_is_sign=False) as watched:
                assert watched.now.last_sign_at_s == NEVER
                assert watched.now.present == watched.now.error == ""
                assert watched.sensor.details() == {"sessions": ["no session"], "locks on idle": []}

    asyncio.run(story())


def test_a_hint_too_short_for_a_look_is_a_sign(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.sessions[ONE] = session(IdleHint=True, LockedHint=True, IdleSinceHintMonotonic=1_000_000)
            async with Watched(private_bus.address, start_is_sign=False) as watched:
                assert watched.now.last_sign_at_s == 1.0
                begun = CLOCK.now_s()
                await fake.change(ONE, IdleHint=False)
                fake.sessions[ONE]["IdleHint"] = True  # it is over before anybody can look
                await eventually(lambda: watched.now.last_sign_at_s >= begun, "the sign")
                assert watched.now.sign == "user active on seat0"

    asyncio.run(story())


def test_a_lock_may_be_excepted_and_its_age_is_told(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.lock("idle", "Film")
            async with Watched(private_bus.address, ignore_inhibitors=["Film"]) as watched:
                assert (watched.now.present, watched.now.error) == ("", "")
                fake.lock("idle", "Talk")
                await fake.emit(LOGIN1_PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", LOGIN1_MANAGER, {}, [])
                await eventually(lambda: watched.now.present.startswith("idle blocked by Talk"), "the other one")
                blocked = r"idle blocked by {} of uid 1000 \(pid 4242\), for \d+ s at least \({}presence.ignore_inhibitors\)"
                for line in (blocked.format("Talk", ""), blocked.format("Film", "not counted: ")):
                    assert any(re.fullmatch(line, shown) for shown in watched.sensor.details()["locks on idle"])

    asyncio.run(story())


def test_what_was_not_seen_while_logind_was_away_counts_as_a_sign(private_bus: PrivateBus) -> None:
    """Somebody may have come and gone meanwhile: away is only who was proven away all the time."""

    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address) as watched:
            await fake.stop()
            await eventually(lambda: "logind is not running" in watched.now.error, "the end of logind")
            async with logind(private_bus.address):
                await eventually(lambda: not watched.now.error, "the next one")
                back_at_s = CLOCK.now_s()
                assert (watched.now.present, watched.now.sign) == ("", BACK_SIGN)
                assert back_at_s - watched.now.last_sign_at_s < 5.0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("what", "who", "mode", "mine", "present"),
    [
        ("idle", "Film", "block", False, "idle blocked by Film of anna (pid 4242)"),
        ("sleep:idle", "Film", "block-weak", False, "idle blocked by Film"),
        ("idle", "a\nb\x1b[31m", "block", False, "idle blocked by a b of"),
        ("idle", "Film", "delay", False, ""),
        ("sleep", "Film", "block", False, ""),
        ("handle-lid-switch", "Desktop", "block", False, ""),
        ("idle", "rae-node", "block", False, ""),
        ("idle", "Film", "block", True, ""),
    ],
)
def test_who_keeps_the_screen_on(
    private_bus: PrivateBus, what: str, who: str, mode: str, mine: bool, present: str
) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.sessions[ONE] = session(IdleHint=True, LockedHint=True, IdleSinceHintMonotonic=1_000_000)
            fake.lock(what, who, mode, pid=os.getpid() if mine else 4242)
            async with Watched(private_bus.address, start_is_sign=False) as watched:
                assert watched.now.error == ""
                assert watched.now.present.startswith(present)
                assert bool(watched.now.present) == bool(present)
                assert "why" not in watched.now.present

    asyncio.run(story())


def test_at_rest_logind_is_asked_one_short_question_an_interval(private_bus: PrivateBus) -> None:
    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.sessions[ONE] = session()
            seen = Proof("X11", idle_since_s=1.0)
            async with Watched(private_bus.address, max_age_s=0.3, proof=lambda *_: seen) as watched:
                await eventually(lambda: len(fake.locks()) == 2, "the delay locks")
                fake.calls.clear()
                wakes = watched.wakes
                await eventually(lambda: len(fake.calls) >= 3, "three intervals")
                assert set(fake.calls) == {"GetAll"}
                assert watched.wakes == wakes

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["tty", "x11"])
def test_a_login_that_has_ended_while_its_programs_go_on_is_left(private_bus: PrivateBus, kind: str) -> None:
    """logind sends no signal of a session's State; here somebody logs out and leaves a program behind."""

    async def story() -> None:
        async with logind(private_bus.address) as fake:
            fake.sessions[ONE] = session(Type=kind, State="opening")
            async with Watched(private_bus.address, max_age_s=0.3) as watched:
                await eventually(lambda: bool(watched.now.present), "held by a session that nothing sees")
                fake.sessions[ONE]["State"] = "closing"
                await eventually(lambda: not watched.now.present, "it is left")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("programs", "ignored"),
    [([], False), (["cat"], True), (["cat", "cat"], True), (["cat", "bash"], False), (["bash"], False)],
)
def test_what_a_login_runs_shows_a_moment_after_it(
    private_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, programs: list[str], ignored: bool
) -> None:
    """A backup's session runs one program. Until that has started, its login is nobody's; what is excepted stays so."""
    running: list[Name] = []
    monkeypatch.setattr(sessions_module, "_programs_beside", lambda _: list(running))
    monkeypatch.setattr(sessions_module, "DECIDE_S", 0.3)

    async def story() -> None:
        async with logind(private_bus.address) as fake, Watched(private_bus.address, ignore_commands=["cat"]) as watched:
            await eventually(lambda: not watched.now.error, "a look")
            young = {"Type": "tty", "Seat": ("", "/"), "TimestampMonotonic": int(CLOCK.now_s() * 1e6)}
            fake.sessions[ONE] = session(**young)
            watched.sensor._look_now.set()
            await eventually(lambda: UNDECIDED in str(watched.sensor.details()), "the login, not decided yet")
            before = watched.now
            running.extend(map(Name, programs))
            await eventually(lambda: UNDECIDED not in str(watched.sensor.details()), "a decision")
            assert bool(watched.now.present) == (not ignored)
            running.clear()
            watched.sensor._look_now.set()
            await asyncio.sleep(0.1)
            assert bool(watched.now.present) == (not ignored), "its program has ended first"
            del fake.sessions[ONE]
            watched.sensor._look_now.set()
            await eventually(lambda: not watched.sensor.known, "its end")
            await eventually(lambda: (watched.now.sign == before.sign) == ignored, "a logout, or nothing")

    asyncio.run(story())
