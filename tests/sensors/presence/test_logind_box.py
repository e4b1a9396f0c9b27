"""The sessions sensor beside a real logind: real PAM sessions, switching, hints, restarts, and going to sleep."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.box_probe import Probe
from support.desk import remote_login
from support.sysbox import SysBox
from support.waiting import eventually, until

from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import SystemClock
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.base import RESUME_SIGN, Presence
from supervisor.sensors.presence.logind import Sessions

CLOCK = SystemClock()
CONFIG = Path(__file__).parents[3] / "config"


class Seen:
    """The sensor, from outside the box (it takes no lock there)."""

    def __init__(self, sensor: Sessions) -> None:
        self.sensor = sensor

    @property
    def now(self) -> Presence:
        return self.sensor.latest(CLOCK.now_s())

    async def until(self, condition: Callable[[Presence], bool], what: str) -> Presence:
        await eventually(lambda: condition(self.now), lambda: f"{what}; last: {self.now}")
        return self.now


def watch(box: SysBox, story: Callable[[Seen], Awaitable[None]], **options: Any) -> None:
    """Run a story beside the sensor. `options`: of node.yaml's `presence`."""

    async def run() -> None:
        bus = SystemBus(box.bus_address, backoff_s=(0.01, 0.1))
        settings = PresenceSettings(**options)
        sensor = Sessions(bus, CLOCK, settings, max_age_s=80.0, delay_locks=False, start_is_sign=False)
        await sensor.start(lambda: None)
        try:
            await story(Seen(sensor))
        finally:
            await sensor.stop()
            await bus.stop()

    asyncio.run(run())


@contextlib.contextmanager
def session(box: SysBox, user: str, **options: str) -> Iterator[str]:
    unit, number = box.open_session(user, **options)
    try:
        yield number
    finally:
        box.close_session(unit, number)


@pytest.fixture(autouse=True)
def _no_sessions(box: SysBox) -> None:
    assert box.sessions() == []


@pytest.mark.parametrize("kind", ["wayland", "x11", "mir"])
def test_a_graphical_login_and_logout(box: SysBox, kind: str) -> None:
    async def story(seen: Seen) -> None:
        assert seen.now.error == seen.now.present == ""
        with session(box, "anna", kind=kind) as number:
            now = await seen.until(lambda p: bool(p.present), "the login")
            assert f"graphical session {number} of anna on seat0, idle time unknown: install" in now.present
            begun = CLOCK.now_s()
        now = await seen.until(lambda p: not p.present, "the logout")
        assert now.sign == "anna logged out on seat0"
        assert begun <= now.last_sign_at_s <= CLOCK.now_s()

    watch(box, story)


@pytest.mark.parametrize("strict", [False, True])
def test_hints_count_only_together(box: SysBox, strict: bool) -> None:
    async def story(seen: Seen) -> None:
        with session(box, "anna") as number:
            await seen.until(lambda p: bool(p.present), "the login")
            hinted = CLOCK.now_s()
            box.session_call(number, "SetIdleHint", "b", "true")
            await seen.until(lambda p: "not locked" in p.present or strict, "idle alone")
            begun = CLOCK.now_s()
            box.session_call(number, "SetLockedHint", "b", "true")
            if strict:
                await seen.until(lambda p: "presence.strict" in p.present, "strict")
                return
            now = await seen.until(lambda p: not p.present, "idle and locked")
            assert now.sign == "user active on seat0"
            assert hinted - 2 < now.last_sign_at_s <= begun
            box.session_call(number, "SetLockedHint", "b", "false")
            now = await seen.until(lambda p: bool(p.present), "unlocked")
            assert now.last_sign_at_s >= begun

    watch(box, story, strict=strict)


@pytest.mark.parametrize("kind", ["greeter", "lock-screen", "background"])
def test_a_greeter_is_nobody(box: SysBox, kind: str) -> None:
    async def story(seen: Seen) -> None:
        with session(box, "sddm", session_class=kind) as number:
            await eventually(lambda: number in str(seen.sensor.details()), "the session known")
            assert seen.now == Presence("logind", seen.now.read_at_s)
            (line,) = seen.sensor.details()["sessions"]
            assert line == f"session {number} (wayland, {kind}, active): not a person: class {kind}"
        await eventually(lambda: seen.sensor.details()["sessions"] == ["no session"], "the session gone, and no sign of it")

    watch(box, story)


def test_a_user_manager_is_nobody(box: SysBox) -> None:
    """Since systemd 256 lingering users have sessions of class manager; before, none at all."""

    async def story(seen: Seen) -> None:
        box.add_user("lena", linger=True)
        try:
            assert seen.now == Presence("logind", seen.now.read_at_s)
        finally:
            box.run("loginctl", "disable-linger", "lena")

    watch(box, story)


def test_switching_away_is_a_sign_and_switching_back_a_presence(box: SysBox) -> None:
    async def story(seen: Seen) -> None:
        with session(box, "anna") as anna:
            await seen.until(lambda p: bool(p.present), "the login")
            with session(box, "sddm", session_class="greeter") as greeter:
                now = await seen.until(lambda p: not p.present, "the greeter in front")
                assert now.sign == f"graphical session {anna} of anna left the foreground on seat0"
                box.run("loginctl", "activate", anna)
                await seen.until(lambda p: bool(p.present), "back in front")
                begun = CLOCK.now_s()
                box.run("loginctl", "activate", greeter)
                now = await seen.until(lambda p: not p.present, "in the background again")
                assert now.last_sign_at_s >= begun

    watch(box, story)


def test_a_background_session_found_at_start_counts_from_the_start(box: SysBox) -> None:
    with session(box, "anna") as anna, session(box, "sddm", session_class="greeter"):
        begun = CLOCK.now_s()

        async def story(seen: Seen) -> None:
            assert seen.now.present == ""
            assert seen.now.sign == f"graphical session {anna} of anna found in the background"
            assert seen.now.last_sign_at_s >= begun

        watch(box, story)


def test_a_remote_desktop_needs_no_seat(box: SysBox) -> None:
    async def story(seen: Seen) -> None:
        with session(box, "rdp", kind="x11", seat="") as number:
            now = await seen.until(lambda p: bool(p.present), "the remote session")
            assert f"graphical session {number} of rdp without a seat, idle time unknown" in now.present

    watch(box, story)


def test_a_login_on_a_terminal_is_a_sign_at_its_time(box: SysBox) -> None:
    box.add_user("anna")

    async def story(seen: Seen) -> None:
        begun = CLOCK.now_s()
        login = box.popen(
            "script", "-qfec", "login -f anna", "/dev/null",
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            now = await seen.until(lambda p: "pts/" in p.sign, "the login")
            assert now.present == ""
            # logind reads a terminal's own times too: they go in steps, so that they may lie before the login.
            assert begun - 1 <= now.last_sign_at_s <= CLOCK.now_s()
            assert "anna logged in on pts/" in now.sign or "user active on pts/" in now.sign
        finally:
            login.communicate(b"exit\n")
        now = await seen.until(lambda p: "logged out" in p.sign, "the logout")
        assert now.sign.startswith("anna logged out on pts/")
        await eventually(lambda: not box.sessions(), "the session gone")

    watch(box, story)


def test_who_monitors_is_no_person_where_node_yaml_says_so(box: SysBox) -> None:
    """R3: a login every few seconds, day and night. Neither its coming nor its going is a sign; a person's is."""
    box.add_user("monitor")

    async def story(seen: Seen) -> None:
        for _ in range(2):
            with session(box, "monitor", kind="tty", seat="") as number:
                await eventually(lambda number=number: number in str(seen.sensor.details()), "the session known")
                (line,) = [line for line in seen.sensor.details()["sessions"] if f"session {number} " in line]
                assert line == f"session {number} (tty, user, active): not counted: presence.ignore_users"
            await eventually(lambda: seen.sensor.details()["sessions"] == ["no session"], "the session gone, and no sign of it")
            assert (seen.now.present, seen.now.sign) == ("", "")
        with session(box, "anna", kind="tty", seat=""):
            await seen.until(lambda p: "of anna without a seat, without a terminal" in p.present, "a person")

    watch(box, story, ignore_users=["monitor"])


def test_a_remote_login_without_a_terminal_that_is_not_seen_is_there(box: SysBox) -> None:
    """This sensor runs outside of the box, where its connection is not."""

    async def story(seen: Seen) -> None:
        with remote_login(box, "anna"):
            now = await seen.until(lambda p: bool(p.present), "the login")
            assert " of anna from 127.0.0.7, without a terminal, and its connection is not found: end it (log" in now.present
        await seen.until(lambda p: p.sign == "anna logged out from 127.0.0.7", "its end")

    watch(box, story)


def test_a_film_is_a_sign_until_it_ends(box: SysBox) -> None:
    async def story(seen: Seen) -> None:
        hold = ["systemd-inhibit", "--what=idle", "--who=Film", "--why=secret title", "cat"]
        film = box.popen(*hold, stdin=subprocess.PIPE)
        now = await seen.until(lambda p: bool(p.present), "the film")
        assert now.present.startswith("idle blocked by Film of uid 0 (pid ")
        begun = CLOCK.now_s()
        film.communicate()
        now = await seen.until(lambda p: not p.present, "the end of the film")
        assert now.sign.endswith("until just now")
        assert begun <= now.last_sign_at_s <= CLOCK.now_s()

    watch(box, story)


def test_logind_restarts_stops_and_comes_back(box: SysBox) -> None:
    async def story(seen: Seen) -> None:
        with session(box, "anna"):
            await seen.until(lambda p: bool(p.present), "the login")
            box.run("systemctl", "reset-failed")  # or systemd holds the restarts of other tests against it
            box.run("systemctl", "stop", "systemd-logind")
            now = await seen.until(lambda p: bool(p.error), "logind away")
            assert now.error == "logind is not running: see systemctl status systemd-logind"
            box.run("systemctl", "start", "systemd-logind")
            await seen.until(lambda p: not p.error and bool(p.present), "logind back, with its session")
            box.run("systemctl", "restart", "systemd-logind")
            await seen.until(lambda p: not p.error and bool(p.present), "logind restarted")
        await seen.until(lambda p: "logged out" in p.sign, "signals of the new logind")

    watch(box, story)


def test_the_system_bus_is_killed_and_comes_back(box: SysBox) -> None:
    async def story(seen: Seen) -> None:
        box.run("systemctl", "reset-failed")
        box.run("systemctl", "stop", "dbus.socket", "dbus.service")
        now = await seen.until(lambda p: bool(p.error), "the bus away")
        assert "system bus" in now.error
        box.run("systemctl", "start", "dbus.socket", "dbus.service")
        box.run("systemctl", "restart", "systemd-logind")
        await seen.until(lambda p: not p.error, "the bus back")
        with session(box, "anna"):
            await seen.until(lambda p: bool(p.present), "signals of the new bus")

    watch(box, story)


def test_sleep_waits_for_the_delay_lock_and_twice_in_a_row(box: SysBox) -> None:
    power = box.root / "sys/power/state"
    with Probe(box) as probe:
        locks = ["systemd-inhibit", "--list", "--no-legend", "--no-pager"]

        def kinds() -> list[str]:
            ours = [line for line in box.run(*locks).stdout.splitlines() if "rae-node" in line]
            return sorted(kind for line in ours for kind in ("sleep", "shutdown") if kind in line)

        until(lambda: kinds() == ["shutdown", "sleep"], "one delay lock a kind")
        for _ in range(2):
            power.write_text("freeze mem")
            begun = time.monotonic()
            suspend = box.popen("systemctl", "suspend")
            until(lambda: probe.state()["going_down"], "the warning")
            assert probe.state()["going_down"] == "the machine is going to sleep"
            assert power.read_text().strip() == "freeze mem"
            probe.do("release_delay")
            until(lambda: power.read_text().strip() == "mem", "the sleep")
            assert time.monotonic() - begun < 9, "it waited for the lock to time out"
            until(lambda: not probe.state()["going_down"], "the resume")
            assert probe.state()["sign"] == RESUME_SIGN, "the key that woke it reaches nobody"
            until(lambda: kinds() == ["shutdown", "sleep"], "both locks again")
            suspend.wait(60)
        assert probe.state()["delay_error"] == ""
        assert probe.state()["delay_max_s"] == 10.0  # the box's logind.conf


def test_the_doctor_sees_what_the_real_loginctl_sees(box: SysBox) -> None:
    """With a session in the foreground, a remote one, and the user's manager beside them."""
    config = box.share / "doctor"
    config.mkdir(exist_ok=True)
    for name in ("runtime.yaml", "node.yaml"):
        (config / name).write_text((CONFIG / name).read_text())
    with session(box, "anna", kind="wayland"), session(box, "bert", kind="tty", seat=""):
        output = box.run(box.python, "-I", "-m", "supervisor.tools.doctor.in_service", "/mnt/share/doctor").stdout
    checks = {check["name"]: check for check in json.loads(output)}
    assert (checks["loginctl"]["ok"], checks["loginctl"]["reason"]) == (True, "sees 2 sessions, the same as the node"), output
    assert "session" in checks["sessions"]["reason"]
    assert re.search("idle time unknown|without a terminal", checks["presence: logind"]["reason"])
    assert checks["presence: logind"]["reading"]["quality"] == "inferred"  # no agent is there to ask
