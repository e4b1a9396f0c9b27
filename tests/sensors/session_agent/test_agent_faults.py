"""Faults of the session agent's own parts: none of them may end its reports, or leave it silent for good."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inotify_simple import INotify
from support.login1 import FakeLogin1, PrivateBus, session
from support.waiting import eventually, play

from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import SystemClock
from supervisor.linux.control_socket import ControlServer
from supervisor.sensors.presence.agent_reports import AgentReports, SessionOwners
from supervisor.sensors.session_agent import agent as session_module
from supervisor.sensors.session_agent import reporter as reporter_module
from supervisor.sensors.session_agent import wayland as idle_wayland
from supervisor.sensors.session_agent.agent import Agent, WatchedSource
from supervisor.sensors.session_agent.reporter import Reporter
from supervisor.sensors.session_agent.source import Absent, Gone, Idle, IdleSource

S3 = "/org/freedesktop/login1/session/_33"


class Faulty(IdleSource):
    """A source that is well until it is to prove itself."""

    reading = Idle("made up", 5.0)  # type: ignore[assignment]

    async def run(self, changed: Callable[[], None]) -> None:
        await asyncio.get_running_loop().create_future()

    async def prove(self) -> None:
        raise AssertionError("a fault of ours")


def test_a_source_that_fails_to_prove_itself_is_doubted_and_no_more() -> None:
    """The compositor dies between the proofs of two seats, say."""

    async def story() -> None:
        watched = WatchedSource(Faulty(), lambda: None)
        await watched.prove()
        assert watched.reading is None
        assert str(watched.fault) == "a fault of the session agent (AssertionError), please report it"
        await watched.stop()

    play(story())


@pytest.mark.parametrize("answer", [{"ok": True}, {"ok": True, "every_s": "soon"}, {"ok": True, "every_s": None}, [], 7])
def test_an_answer_of_another_version_is_tried_again(answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "FIRST_RETRY_S", 0.01)
    asked: list[Any] = []

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(json.loads(await reader.readline()))
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    async def story() -> None:
        server = await asyncio.start_unix_server(daemon, tmp_path / "control.sock")
        logged: list[str] = []
        reporting = asyncio.ensure_future(Reporter(tmp_path / "control.sock", nothing, no_proof, logged.append).run())
        await eventually(lambda: len(asked) > 2, "a third try")
        assert len(logged) == 1
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        server.close()

    play(story())


def test_a_touch_does_not_wait_for_a_display_that_is_being_asked(tmp_path: Path) -> None:
    """R23: the proof of one display may take seconds; a touch at another one is reported meanwhile."""
    lines: list[dict[str, Any]] = []
    proving = asyncio.Event()

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(json.loads(await reader.readline()))
        writer.write(json.dumps({"ok": True, "every_s": 0.05}).encode() + b"\n")
        while line := await reader.readline():
            lines.append(json.loads(line))
        writer.close()

    async def hanging() -> None:
        proving.set()
        await asyncio.get_running_loop().create_future()

    async def story() -> None:
        server = await asyncio.start_unix_server(daemon, tmp_path / "control.sock")
        reporter = Reporter(tmp_path / "control.sock", nothing, hanging, lambda _: None)
        reporting = asyncio.ensure_future(reporter.run())
        await proving.wait()
        assert len(lines) == 1
        reporter.changed()
        await eventually(lambda: len(lines) == 2, "the report", 2.0)
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        server.close()

    play(story())


def test_a_daemon_that_hangs_up_now_and_then_gets_a_report_at_once_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so whenever it rebuilds its sensors. Waits must not add up over the months that an agent lives: until it is
    back, its desktop is taken for active."""
    monkeypatch.setattr(reporter_module, "FIRST_RETRY_S", 0.01)
    taken = 0

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readline()
        writer.write(json.dumps({"ok": True, "every_s": 20}).encode() + b"\n")
        await writer.drain()
        taken += 1
        writer.close()

    async def story() -> None:
        server = await asyncio.start_unix_server(daemon, tmp_path / "control.sock")
        logged: list[str] = []
        reporting = asyncio.ensure_future(Reporter(tmp_path / "control.sock", nothing, no_proof, logged.append).run())
        await eventually(lambda: taken > 14, lambda: f"more than {taken} connections")  # a minute and a half, if waits doubled
        assert set(logged) == {"the daemon closed the connection"}
        assert len(logged) >= 14
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        server.close()

    play(story())


def nothing() -> dict[str, Any]:
    return {"sessions": [], "terminals": None}


async def no_proof() -> None:
    """Nothing to ask."""


class Watchless(INotify):
    """inotify where the user has used up all watches."""

    def add_watch(self, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")


def refuse(**_: object) -> None:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("inotify", [refuse, Watchless], ids=["no instance", "no watch"])
def test_without_inotify_the_daemon_is_tried_again_after_a_while(
    inotify: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user may have 128 of them, and desktops use them up."""
    monkeypatch.setattr(reporter_module, "FIRST_RETRY_S", 0.01)
    heard = asyncio.Event()

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        heard.set()
        writer.close()

    async def story() -> None:
        monkeypatch.setattr("supervisor.linux.inotify.INotify", inotify)
        logged: list[str] = []
        reporting = asyncio.ensure_future(Reporter(tmp_path / "control.sock", nothing, no_proof, logged.append).run())
        await eventually(lambda: logged, "a word")
        server = await asyncio.start_unix_server(daemon, tmp_path / "control.sock")
        await asyncio.wait_for(heard.wait(), 30)
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        server.close()

    play(story())


@pytest.mark.parametrize("member", ["ListSessions", "GetAll"])
def test_sessions_that_logind_did_not_tell_are_asked_for_again(member: str, tmp_path: Path) -> None:
    """It was slow, once; no signal comes of it."""

    async def story() -> None:
        with PrivateBus(tmp_path) as bus:
            login1 = await FakeLogin1(bus.address).start()
            login1.sessions[S3] = session(User=(os.getuid(), "/u"), Type="tty")
            login1.replies[member] = "org.freedesktop.DBus.Error.Failed"
            agent = Agent(
                tmp_path / "none", bus_address=bus.address, session_bus=f"unix:path={tmp_path}/none", runtime=tmp_path,
            )  # fmt: skip
            running = asyncio.ensure_future(agent.run())
            await eventually(lambda: member in login1.calls, "the question")
            del login1.replies[member]
            await eventually(lambda: "3" in agent._sessions, "the session", 20)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await login1.stop()

    play(story())


@pytest.mark.parametrize("inotify", [refuse, Watchless], ids=["no instance", "no watch"])
def test_without_inotify_a_compositor_is_found_after_a_while(
    inotify: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing reports its socket then; terminals are left to their own times, which the daemon reads."""
    monkeypatch.setattr("supervisor.linux.inotify.INotify", inotify)
    monkeypatch.setattr(session_module, "RETRY_S", (0.01, 0.1))
    found: list[Path] = []

    class Compositor(Faulty):
        def __init__(self, path: Path, quiet_s: float) -> None:
            found.append(path)

    monkeypatch.setattr(session_module, "WaylandIdle", Compositor)

    async def story() -> None:
        with PrivateBus(tmp_path) as bus:
            login1 = await FakeLogin1(bus.address).start()
            login1.sessions[S3] = session(User=(os.getuid(), "/u"), Type="wayland")
            agent = Agent(
                tmp_path / "none", bus_address=bus.address, session_bus=f"unix:path={tmp_path}/none", runtime=tmp_path,
            )  # fmt: skip
            running = asyncio.ensure_future(agent.run())
            await eventually(lambda: agent._sessions or running.done(), "the session")
            (tmp_path / "wayland-0").touch()
            await eventually(lambda: found or running.done(), "its display")
            assert not running.done()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await login1.stop()

    play(story())


def test_a_seat_that_comes_while_a_compositor_is_being_asked_is_watched_too() -> None:
    """A person who sits down there would never be seen."""

    async def story() -> None:
        source, sent = idle_wayland.WaylandIdle(Path("wayland-7")), list[bytes]()
        source._writer = SimpleNamespace(write=sent.append)  # type: ignore[assignment]
        source._listening = asyncio.get_running_loop().create_future()

        def announce(name: int, interface: str) -> None:
            body = idle_wayland._u32(name) + idle_wayland._text(interface) + idle_wayland._u32(2)
            source._event(idle_wayland.REGISTRY_ID, 0, body)

        async def answer() -> None:
            await eventually(lambda: source._syncs, "the question")
            source._event(next(iter(source._syncs)), 0, idle_wayland._u32(0))

        beginning = asyncio.ensure_future(source._begin())
        announce(1, idle_wayland.SEAT)
        announce(2, idle_wayland.EXT)
        await answer()
        await eventually(lambda: source._notifier, "the notifier")
        announce(3, idle_wayland.SEAT)
        await answer()
        await beginning
        assert set(source._seats) == {1, 3}
        assert {note.seat for note in source._notes.values()} == set(source._seats.values())

    play(story())


@pytest.mark.parametrize(
    ("number", "absent"),
    [(errno.ENOENT, True), (errno.ECONNREFUSED, True), (errno.EMFILE, False), (errno.EACCES, False), (errno.EAGAIN, False)],
)
def test_a_compositor_that_cannot_be_reached_is_not_absent(
    number: int, absent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is absent is left out; of a display that is there and cannot be seen nothing is proven."""

    async def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio, "open_unix_connection", refuse)

    async def story() -> None:
        with pytest.raises(Gone) as gone:
            await idle_wayland.WaylandIdle(tmp_path / "wayland-0").run(lambda: None)
        assert isinstance(gone.value, Absent) is absent

    play(story())


def test_an_agent_that_is_back_before_the_sensors_are_rebuilt_reports_to_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping the old ones takes a moment, and an agent returns sooner: its reports would be lost for good."""
    monkeypatch.setattr(reporter_module, "FIRST_RETRY_S", 0.01)

    def reports() -> AgentReports:
        return AgentReports(SystemClock(), PresenceSettings(), SessionOwners({"3": (os.getuid(), "anna")}), 80.0)

    old, new = reports(), reports()
    current, calls = old, 0

    def hearing(uid: int, hang_up: Callable[[], None]) -> Any:
        nonlocal calls
        calls += 1
        return current.connect(uid, hang_up)

    async def story() -> None:
        nonlocal current
        server = ControlServer(tmp_path / "control.sock", {}, frozenset(), {"presence": hearing})
        await server.start()
        reporting = asyncio.ensure_future(Reporter(tmp_path / "control.sock", nothing, no_proof, lambda _: None).run())
        await eventually(lambda: old._reports, "the first report")
        await old.stop()
        await eventually(lambda: calls > 1, "the agent, back")
        current = new
        await eventually(lambda: new._reports, "its report to the new one")
        assert not old._reports
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        await server.stop()

    play(story())
