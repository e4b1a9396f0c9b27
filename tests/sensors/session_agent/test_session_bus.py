"""What a desktop says on its own bus: a real Mutter where there is one; GNOME, KDE and the screen saver as services."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio import MessageBus
from support.displays import missing
from support.login1 import PrivateBus
from support.waiting import eventually

from supervisor.sensors.session_agent import session_bus as idle_bus
from supervisor.sensors.session_agent.session_bus import (
    GAMEMODE,
    GAMEMODE_PATH,
    GNOME,
    GNOME_PATH,
    KDE,
    KDE_PATH,
    MUTTER,
    MUTTER_PATH,
    PLAYING,
    SAVER,
    UNKNOWN,
    BusIdle,
)
from supervisor.sensors.session_agent.source import boot_s

QUIET_S = 0.3


class Service:
    """A service of ours: answers by member, (signature, body), a callable that gives it, an error's name, or None: it hangs."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.name = address, name
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.bus: MessageBus | None = None

    async def start(self) -> Service:
        self.bus = await MessageBus(bus_address=self.address, bus_type=BusType.SYSTEM).connect()
        self.bus.add_message_handler(self._answer)
        await self.bus.request_name(self.name)
        return self

    def _answer(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member not in self.answers:
            return None
        self.asked.append(message.member)
        assert message.flags & MessageFlag.NO_AUTOSTART, "no question may start a service (T31)"
        answer = self.answers[message.member]
        if answer is None:
            return True
        if isinstance(answer, str):
            return Message.new_error(message, answer, "as planned")
        return Message.new_method_return(message, *(answer(message) if callable(answer) else answer))

    async def emit(self, path: str, member: str, signature: str, *body: Any) -> None:
        assert self.bus
        await self.bus.send(Message.new_signal(path, self.name, member, signature, list(body)))

    async def stop(self) -> None:
        assert self.bus
        self.bus.disconnect()
        await asyncio.gather(self.bus.wait_for_disconnect(), return_exceptions=True)


def beside(folder: Path, story: Callable[[str, BusIdle], Any], quiet_s: float = QUIET_S) -> None:
    """Run a story beside the source on a bus of its own."""

    async def run() -> None:
        with PrivateBus(folder) as bus:
            source = BusIdle(bus.address, quiet_s)
            running = asyncio.ensure_future(source.run(lambda: None))
            try:
                await asyncio.wait_for(story(bus.address, source), 150)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def idle(source: BusIdle) -> bool:
    return source.reading is not None and source.reading.idle_since_s is not None


def active(source: BusIdle) -> bool:
    return source.reading is not None and source.reading.idle_since_s is None


def test_mutter_signals_both_ways_and_is_asked_for_a_proof(tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        mutter = Service(address, MUTTER)
        ids = iter(range(1, 100))
        idle_ms = 0
        mutter.answers = {
            "AddIdleWatch": lambda m: ("u", [next(ids)]) if m.body == [300] else ("s", [""]),
            "AddUserActiveWatch": lambda m: ("u", [next(ids)]),
            "GetIdletime": lambda m: ("t", [idle_ms]),
        }
        await mutter.start()
        await eventually(lambda: active(source), "the probe")
        assert source.reading
        assert (source.reading.source, source.reading.pid) == ("Mutter's idle monitor", os.getpid())
        idle_ms, begun_s = 300, boot_s()
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 1)
        await eventually(lambda: idle(source) and mutter.asked[-1] == "GetIdletime", "idle")
        assert source.reading.idle_since_s is not None
        assert begun_s - 0.31 <= source.reading.idle_since_s <= boot_s() - 0.29
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 2)  # the watch of the beginning, which is over by now
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 3)
        await eventually(lambda: active(source), "a touch", 20)
        # A touch between the signal and the watch for it.
        idle_ms = 0
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", 1)
        await eventually(lambda: mutter.asked.count("AddUserActiveWatch") == 3 and active(source), "the touch in between")
        idle_ms = 5000
        await source.prove()
        assert idle(source)
        mutter.answers["GetIdletime"] = ("s", ["soon"])
        await source.prove()
        assert source.reading is None
        await mutter.stop()

    beside(tmp_path, story)


def test_a_real_mutter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("mutter"):
        pytest.skip(reason)

    async def story(address: str, source: BusIdle) -> None:
        runtime = tmp_path / "run"
        runtime.mkdir(mode=0o700)
        env = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime),
            "DBUS_SESSION_BUS_ADDRESS": address, "GSETTINGS_BACKEND": "memory", "LIBGL_ALWAYS_SOFTWARE": "1",
            "MUTTER_DEBUG_RESET_IDLETIME": "1",
        }
        argv = ["mutter", "--headless", "--wayland", "--no-x11", "--virtual-monitor", "320x240"]
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as mutter:
            try:
                await eventually(lambda: idle(source), "idle", 20)
                assert source.reading
                assert source.reading.pid == mutter.pid
                reset = ["busctl", f"--address={address}", "call", MUTTER, MUTTER_PATH, MUTTER, "ResetIdletime"]
                assert await asyncio.to_thread(subprocess.call, reset) == 0
                await eventually(lambda: active(source), "a touch", 20)
                await eventually(lambda: idle(source), "idle again")
                await source.prove()
                assert idle(source)
            finally:
                mutter.kill()
        await eventually(lambda: source.reading is None, "its end")

    beside(tmp_path, story, 1.0)


@pytest.mark.parametrize("per_s", [1, 1000], ids=["seconds", "milliseconds"])
def test_the_screen_saver_is_asked_only_where_wanted_and_its_unit_is_proven(
    tmp_path: Path, per_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_bus, "POLL_S", 0.5)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        since_s = boot_s() - 60
        saver.answers["GetSessionIdleTime"] = lambda _: ("u", [int((boot_s() - since_s) * per_s)])
        await saver.start()
        await asyncio.sleep(0.1)
        assert saver.asked == []
        source.poll(True)
        await eventually(lambda: idle(source), "idle", 20)
        assert source.reading
        assert "asked every" in source.reading.source
        assert source.reading.idle_since_s == pytest.approx(since_s, abs=5)  # its own seconds, and the machine's pauses
        since_s = boot_s()

        def touched() -> bool:  # seen within the moment itself, or by the time that has passed since
            seen = source.reading
            return seen is not None and (seen.idle_since_s is None or seen.idle_since_s >= since_s - 1.2)

        await eventually(touched, "a touch", 20)
        source.poll(False)
        assert source.reading is None
        await saver.stop()

    beside(tmp_path, story)


def test_a_screen_saver_whose_time_does_not_pass_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        saver.answers["GetSessionIdleTime"] = ("u", [100_000])
        await saver.start()
        source.poll(True)
        await eventually(lambda: len(saver.asked) > 5, "questions")
        assert source.reading is None
        await saver.stop()

    beside(tmp_path, story)


def test_a_small_growth_proves_no_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody types, and by chance the second answer is one millisecond more than the first."""
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)
    monkeypatch.setattr(idle_bus, "POLL_S", 0.5)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        answers = iter([2, 3, *([90, 140] * 1000)])
        saver.answers["GetSessionIdleTime"] = lambda _: ("u", [next(answers)])
        await saver.start()
        source.poll(True)
        while len(saver.asked) < 12:
            await asyncio.sleep(0.01)
            assert not idle(source)
        await saver.stop()

    beside(tmp_path, story)


def test_a_unit_that_turns_out_wrong_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken for seconds goes on as milliseconds do."""
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)
    monkeypatch.setattr(idle_bus, "POLL_S", 0.1)
    monkeypatch.setattr(idle_bus, "UNIT_S", 0.2)

    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, SAVER)
        value = 100
        saver.answers["GetSessionIdleTime"] = lambda _: ("u", [value])
        await saver.start()
        source.poll(True)
        await eventually(lambda: idle(source), "seconds, by chance")
        value = 190
        await eventually(lambda: source.reading is None, "doubt")
        await saver.stop()

    beside(tmp_path, story)


def test_a_screen_saver_that_goes_tells_of_no_touch_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last word was that nobody is there, which somebody who comes back would never change."""
    monkeypatch.setattr(idle_bus, "PROBE_S", 0.05)
    monkeypatch.setattr(idle_bus, "POLL_S", 0.1)
    monkeypatch.setattr(idle_bus, "UNIT_S", 0.2)

    async def story(address: str, source: BusIdle) -> None:
        for _ in range(2):
            since_s = boot_s() - 60
            saver = Service(address, SAVER)
            saver.answers["GetSessionIdleTime"] = lambda _, since_s=since_s: ("u", [int(boot_s() - since_s)])
            await saver.start()
            source.poll(True)
            await eventually(lambda: idle(source), "idle")
            await saver.stop()
            await eventually(lambda: source.reading is None, "its end")

    beside(tmp_path, story)


@pytest.mark.parametrize("member", ["AddIdleWatch", "AddUserActiveWatch", "GetIdletime"])
def test_a_mutter_that_is_busy_for_once_is_asked_again(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GNOME's shell answers nobody while it starts: without a second question its session would never be proven idle."""
    monkeypatch.setattr(idle_bus, "ANSWER_S", 0.1)
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        mutter = Service(address, MUTTER)
        ids = iter(range(1, 100))
        well = {
            "AddIdleWatch": lambda _: ("u", [next(ids)]), "AddUserActiveWatch": lambda _: ("u", [next(ids)]),
            "GetIdletime": ("t", [5000]),
        }  # fmt: skip
        mutter.answers = well | {member: None}
        await mutter.start()
        await eventually(lambda: member in mutter.asked, "the first question")
        assert not idle(source)
        mutter.answers = well
        await eventually(lambda: idle(source), "idle")
        if member == "AddIdleWatch":  # set once only
            return
        mutter.answers = well | {member: None}
        asked = mutter.asked.count(member)
        await mutter.emit(MUTTER_PATH, "WatchFired", "u", source._idle_watch)
        await eventually(lambda: mutter.asked.count(member) > asked and source.reading is None, "doubt")
        mutter.answers = well
        await eventually(lambda: idle(source), "idle again")
        await mutter.stop()

    beside(tmp_path, story)


@pytest.mark.parametrize(
    ("name", "member", "film", "none", "emit"),
    [
        pytest.param(
            GNOME, "GetInhibitors", ("ao", [["/i/1"]]), ("ao", [[]]), (GNOME_PATH, "InhibitorAdded", "o", "/i/1"), id="GNOME"
        ),
        pytest.param(
            KDE, "HasInhibition", ("b", [True]), ("b", [False]), (KDE_PATH, "InhibitionsChanged", "a(ss)as", [], []), id="KDE"
        ),
    ],
)  # fmt: skip
def test_who_does_not_tell_of_inhibitors_may_have_some(
    name: str, member: str, film: Any, none: Any, emit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session manager that hangs: what it said before counts, and it is asked again."""
    monkeypatch.setattr(idle_bus, "ANSWER_S", 0.1)
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        service = Service(address, name)
        service.answers = {
            member: None, "GetAppId": ("s", ["film"]), "GetFlags": ("u", [8]), "ListInhibitions": ("a(ss)", [[["film", ""]]]),
        }  # fmt: skip
        await service.start()
        await eventually(lambda: source.inhibitors == (UNKNOWN,), "doubt")
        service.answers[member] = film
        await eventually(lambda: source.inhibitors == ("film",), "the film, asked for again")
        service.answers[member] = None
        asked = len(service.asked)
        await service.emit(*emit)
        await eventually(lambda: len(service.asked) > asked + 2, "three questions in vain")
        assert source.inhibitors == ("film",)
        service.answers[member] = none
        await eventually(lambda: source.inhibitors == (), "its end")
        await service.stop()

    beside(tmp_path, story)


@pytest.mark.parametrize(("name", "member"), [(GNOME, "GetInhibitors"), (KDE, "HasInhibition"), (KDE, "ListInhibitions")])
@pytest.mark.parametrize(
    ("error", "held"),
    [
        pytest.param("AccessDenied", (UNKNOWN,), id="refused"),
        pytest.param("Failed", (UNKNOWN,), id="failed"),
        pytest.param("UnknownMethod", (), id="there is no such list"),
    ],
)
def test_a_list_that_is_refused_is_no_empty_one(
    name: str, member: str, error: str, held: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        service = Service(address, name)
        service.answers = {"HasInhibition": ("b", [True]), member: f"org.freedesktop.DBus.Error.{error}"}
        await service.start()
        await eventually(lambda: member in service.asked and not source._tasks, "the answer")
        assert source.inhibitors == ((UNKNOWN,) if member == "ListInhibitions" else held)  # that there is one is known
        await service.stop()

    beside(tmp_path, story)


def test_inhibitors_of_gnome_with_their_holders(tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        gnome = Service(address, GNOME)
        held = {"/i/1": ("org.example.Film", 8), "/i/2": ("org.example.Burner", 4)}
        gnome.answers = {
            "GetInhibitors": lambda _: ("ao", [list(held)]),
            "GetAppId": lambda m: ("s", [held[m.path][0]]),
            "GetFlags": lambda m: ("u", [held[m.path][1]]),
        }
        await gnome.start()
        await eventually(lambda: source.inhibitors == ("org.example.Film",), "the film, which was there before")
        del held["/i/1"]
        await gnome.emit(GNOME_PATH, "InhibitorRemoved", "o", "/i/1")
        await eventually(lambda: source.inhibitors == (), "its end")
        held["/i/3"] = ("org.example.Call", 12)
        await gnome.emit(GNOME_PATH, "InhibitorAdded", "o", "/i/3")
        await eventually(lambda: source.inhibitors == ("org.example.Call",), "a call")
        await gnome.stop()
        await eventually(lambda: source.inhibitors == (), "the end of the session manager")

    beside(tmp_path, story)


@pytest.mark.parametrize(
    ("locks", "holders"),
    [pytest.param(40, ("film",), id="a film among many"), pytest.param(300, (UNKNOWN,), id="more than are looked at")],
)
def test_many_other_locks_of_gnome_hide_no_film(locks: int, holders: tuple[str, ...], tmp_path: Path) -> None:
    """A program that never gives its locks on suspend up, say; they come in no order."""

    async def story(address: str, source: BusIdle) -> None:
        gnome = Service(address, GNOME)
        film = f"/i/{locks}"
        gnome.answers = {
            "GetInhibitors": ("ao", [[f"/i/{number + 1}" for number in range(locks)]]),
            "GetAppId": ("s", ["film"]),
            "GetFlags": lambda m: ("u", [8 if m.path == film else 4]),
        }
        await gnome.start()
        await eventually(lambda: source.inhibitors == holders, "the film")
        await gnome.stop()

    beside(tmp_path, story)


def test_a_game_that_gamemode_knows_and_gamemode_is_never_started(tmp_path: Path) -> None:
    """T31: the bus would start it for each caller."""

    async def story(address: str, source: BusIdle) -> None:
        gamemode = Service(address, GAMEMODE)
        games = {"ClientCount": Variant("i", 1)}
        gamemode.answers = {"GetAll": lambda _: ("a{sv}", [games])}
        await gamemode.start()
        await eventually(lambda: source.inhibitors == (PLAYING,), "the game")
        games["ClientCount"] = Variant("i", 0)
        await gamemode.emit(GAMEMODE_PATH, "GameUnregistered", "io", 7, "/g/7")
        await eventually(lambda: source.inhibitors == (), "its end")
        games["ClientCount"] = Variant("i", 2)
        await gamemode.emit(GAMEMODE_PATH, "GameRegistered", "io", 8, "/g/8")
        await eventually(lambda: source.inhibitors == (PLAYING,), "two more")
        del games["ClientCount"]
        asked = len(gamemode.asked)
        await gamemode.emit(GAMEMODE_PATH, "GameUnregistered", "io", 8, "/g/8")
        await eventually(lambda: len(gamemode.asked) > asked, "the question")
        assert source.inhibitors == (PLAYING,)  # it does not say how many any more: unknown is not idle
        await gamemode.stop()
        await eventually(lambda: source.inhibitors == (), "the end of gamemode")

    beside(tmp_path, story)


def test_a_gamemode_that_is_busy_for_once_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs its scripts before it answers anybody (here it takes as long as a call may); no signal reports its end."""
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        gamemode = Service(address, GAMEMODE)
        gamemode.answers = {"GetAll": None}
        await gamemode.start()
        await eventually(lambda: source.inhibitors == (PLAYING,), "doubt")
        gamemode.answers = {"GetAll": ("a{sv}", [{"ClientCount": Variant("i", 0)}])}
        await eventually(lambda: source.inhibitors == (), "nobody plays")
        await gamemode.stop()

    beside(tmp_path, story)


def test_inhibitions_of_kde_with_their_holders_and_no_reason(tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        kde = Service(address, KDE)
        kde.answers = {"HasInhibition": ("b", [True]), "ListInhibitions": ("a(ss)", [[["firefox", "a secret title"]]])}
        await kde.start()
        await eventually(lambda: source.inhibitors == ("firefox",), "the film")
        kde.answers["HasInhibition"] = ("b", [False])
        await kde.emit(KDE_PATH, "InhibitionsChanged", "a(ss)as", [], ["firefox"])
        await eventually(lambda: source.inhibitors == (), "its end")
        await kde.stop()

    beside(tmp_path, story)
