"""The session agent and the daemon's end, joined by a real control socket: real displays, ptys, and a logind of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.displays import IdleServer, Xvfb, missing
from support.login1 import FakeLogin1, PrivateBus, session
from support.own_terminals import own_terminals
from support.waiting import eventually, watched_loop

from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import SystemClock
from supervisor.linux.control_socket import ControlServer
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.base import Presence
from supervisor.sensors.presence.agent_reports import INSTALL_AGENT, AgentReports, SessionOwners
from supervisor.sensors.presence.logind import Sessions
from supervisor.sensors.session_agent.agent import Agent
from supervisor.sensors.session_agent.homes import Homes, OwnSession
from supervisor.sensors.session_agent.session_bus import BusIdle
from supervisor.sensors.session_agent.source import Lacking

QUIET_S = 0.3
ME = os.getuid()
CLOCK = SystemClock()
S3, S5 = "/org/freedesktop/login1/session/_33", "/org/freedesktop/login1/session/_35"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="agent-"))
    yield path
    shutil.rmtree(path)


class Node:
    """The daemon's part: logind's sessions, the desktop sensor, the control socket."""

    def __init__(self, folder: Path, bus: str, max_age_s: float) -> None:
        settings = PresenceSettings()
        self.path = folder / "node" / "control.sock"
        self._bus = SystemBus(bus)
        self.agent_reports = AgentReports(CLOCK, settings, owners := SessionOwners(), max_age_s)
        self.sessions = Sessions(
            self._bus, CLOCK, settings, owners, max_age_s=max_age_s, delay_locks=False, start_is_sign=False,
            proof=self.agent_reports.proof,
        )
        self.server = ControlServer(self.path, {}, frozenset(), {"presence": self.agent_reports.connect})
        self.woken = asyncio.Event()

    async def start(self) -> Node:
        await self.sessions.start(self.woken.set)
        await self.agent_reports.start(self.woken.set)
        await self.server.start()
        return self

    async def stop(self) -> None:
        await self.server.stop()
        await self.agent_reports.stop()
        await self.sessions.stop()
        await self._bus.stop()

    @property
    def now(self) -> Presence:
        return self.sessions.latest(CLOCK.now_s())

    @property
    def typed(self) -> Presence:
        return self.agent_reports.latest(CLOCK.now_s())

    async def until(self, condition: Callable[[Presence], Any], what: str) -> None:
        await eventually(lambda: condition(self.now), lambda: f"{what}; now: {self.now}; {self.agent_reports.details()}")

    async def away(self, source: str) -> None:
        await self.until(lambda p: not p.present and source in p.sign, f"away by {source}")

    async def here(self, text: str) -> None:
        await self.until(lambda p: text in p.present, text)


class World:
    """A bus with logind, a node, an agent."""

    def __init__(self, folder: Path, bus: PrivateBus, login1: FakeLogin1, node: Node) -> None:
        self.folder, self.bus, self.login1, self.node = folder, bus, login1, node
        self.logged: list[str] = []
        self.runtime = folder / "run"
        self._running: asyncio.Task[None] | None = None

    def start_agent(self, **options: Any) -> Agent:
        agent = Agent(
            self.node.path, bus_address=self.bus.address, session_bus=f"unix:path={self.folder}/no-bus",
            runtime=self.runtime, x_folder=self.folder / "X11", quiet_s=QUIET_S, log=self.logged.append, **options,
        )
        self._running = asyncio.ensure_future(agent.run())
        return agent

    async def stop_agent(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


@contextlib.asynccontextmanager
async def world(
    folder: Path, max_age_s: float = 60.0, second: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[World]:
    (folder / "run").mkdir()
    (folder / "X11").mkdir()  # not the machine's, where other tests' servers are
    with PrivateBus(folder) as bus:
        login1 = await FakeLogin1(bus.address).start()
        if changes:
            login1.sessions[S3] = session(**{"User": (ME, "/u"), **changes})
        if second:
            login1.sessions[S5] = second
        node = await Node(folder, bus.address, max_age_s).start()
        made = World(folder, bus, login1, node)
        try:
            yield made
        finally:
            await made.stop_agent()
            await node.stop()
            await login1.stop()


def in_loop(story: Callable[..., Awaitable[None]]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        asyncio.run(asyncio.wait_for(story(folder), 60))

    run.__doc__ = story.__doc__
    return run


needs_x = pytest.mark.skipif(bool(missing("Xvfb", "xdotool")), reason=missing("Xvfb", "xdotool"))


@needs_x
@in_loop
async def test_an_x11_session_from_install_to_kill(folder: Path) -> None:
    with Xvfb() as x:
        async with world(folder, Type="x11", Display=x.name) as seen:
            await seen.node.here(f"graphical session 3 of anna on seat0, idle time unknown: {INSTALL_AGENT}")
            seen.start_agent()
            await seen.node.away("XSync IDLETIME")
            seen.node.woken.clear()
            begun_s = time.monotonic()
            await asyncio.to_thread(x.touch)
            await asyncio.wait_for(seen.node.woken.wait(), 5)
            assert seen.node.now.present.startswith("graphical session 3 of anna active on seat0 (XSync")
            assert time.monotonic() - begun_s < 0.5
            await seen.node.away("XSync IDLETIME")
            x.stop()
            await seen.node.here("idle time unknown: display")
            await seen.stop_agent()
            await seen.node.here(INSTALL_AGENT)


@needs_x
@in_loop
async def test_a_hung_display_is_no_proof_once_it_has_been_asked(folder: Path) -> None:
    with Xvfb() as x:
        async with world(folder, 1.5, Type="x11", Display=x.name) as seen:
            seen.start_agent()
            await seen.node.away("XSync IDLETIME")
            x.hang()
            await seen.node.until(lambda p: bool(p.present), "unknown")
            await seen.node.here("does not answer")
            x.go_on()
            await seen.node.away("XSync IDLETIME")


@in_loop
async def test_wayland_its_film_and_its_end(folder: Path) -> None:
    async with world(folder, Type="wayland") as seen:
        seen.start_agent()
        await seen.node.here("idle time unknown: the session agent finds no display of it")
        with IdleServer(seen.runtime / "wayland-0", 2) as server:
            await seen.node.away("input notifications of ext-idle-notify-v1 on wayland-0")
            server.say("i")
            await eventually(lambda: "idle inhibitor" in seen.node.typed.present, "the film")
            assert seen.node.typed.present == "idle blocked by an idle inhibitor of the compositor of anna (session 3)"
            server.say("u")
            await eventually(lambda: not seen.node.typed.present, "its end")
            server.touch()
            await seen.node.here("active on seat0 (input notifications")
            await seen.node.away("input notifications")
        (seen.runtime / "wayland-0").unlink()
        await seen.node.here("finds no display")


@in_loop
async def test_one_display_that_cannot_be_seen_spoils_the_proof(folder: Path) -> None:
    """A nested compositor is idle while its owner works in the outer one, which offers nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # it answers nothing at all
        writer.close()

    async with world(folder, Type="wayland") as seen:
        with IdleServer(seen.runtime / "wayland-1", 2):
            seen.start_agent()
            await seen.node.away("wayland-1")
            mute = await asyncio.start_unix_server(serve, seen.runtime / "wayland-0")
            await seen.node.here("idle time unknown: wayland-0")
            mute.close()
            (seen.runtime / "wayland-0").unlink()
            await seen.node.away("wayland-1")


@in_loop
async def test_x_is_asked_for_x11_sessions_alone(folder: Path) -> None:
    """T1: whatever Display says, a Wayland session's X server knows X windows only."""
    async with world(folder, Type="wayland", Display=":0") as seen:
        seen.start_agent()
        await seen.node.here("finds no display")


def x_socket(seen: World, display: str) -> None:
    """The display is in the folder where the agent looks for X servers."""
    (seen.folder / "X11" / f"X{display[1:]}").touch()


@needs_x
@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"Type": "tty", "TTY": ""}, "on seat0"),
        ({"Type": "unspecified", "Seat": ("", "/")}, "without a seat"),
        ({"Type": "x11"}, "on seat0"),
        ({"Type": "novel"}, "on seat0"),
    ],
)
def test_an_x_display_is_seen_whatever_its_sessions_type(folder: Path, changes: dict[str, Any], place: str) -> None:
    """R3: startx, VNC from a shell, X2Go. logind knows no display of theirs, and the display comes later."""

    async def story() -> None:
        with Xvfb() as x:
            async with world(folder, **changes) as seen:
                seen.start_agent()
                await seen.node.until(lambda p: bool(p.present), "nothing is proven yet")
                x_socket(seen, x.name)
                await seen.node.away("XSync IDLETIME")
                await asyncio.to_thread(x.touch)
                await seen.node.here(f"session 3 of anna active {place} (XSync IDLETIME of display {x.name})")
                await seen.node.away("XSync IDLETIME")

    asyncio.run(asyncio.wait_for(story(), 60))


@needs_x
@in_loop
async def test_a_touch_at_a_login_screen_is_a_sign(folder: Path) -> None:
    """A greeter is nobody; who types a password there is somebody. One that hangs is not known."""
    with Xvfb() as x:
        async with world(folder, 1.5, Type="x11", Class="greeter", Name="sddm", Display=x.name) as seen:
            await seen.node.until(lambda p: not p.present and not p.sign, "nobody, without an agent too")
            seen.start_agent()
            await seen.node.until(lambda p: not p.present and "login screen used on seat0 (XSync" in p.sign, "untouched")
            await asyncio.to_thread(x.touch)
            await seen.node.here("login screen, session 3 of sddm active on seat0 (XSync")
            await seen.node.until(lambda p: not p.present, "untouched again")
            x.hang()
            await seen.node.here("login screen, session 3 of sddm on seat0, idle time unknown: display")


@needs_x
@in_loop
async def test_two_desktops_of_one_user(folder: Path) -> None:
    """A desktop at the seat, and a VNC session that was left open: each is seen by its own display."""
    with Xvfb() as x:
        vnc = session(Id="5", User=(ME, "/u"), Type="x11", Display=x.name, Seat=("", "/"))
        async with world(folder, second=vnc, Type="wayland") as seen:
            with IdleServer(seen.runtime / "wayland-0", 2) as server:
                seen.start_agent()
                await seen.node.until(lambda p: not p.present and bool(p.sign), "both away")
                server.touch()
                await seen.node.here("session 3 of anna active on seat0 (input notifications")
                await seen.node.until(lambda p: not p.present, "away again")
                await asyncio.to_thread(x.touch)
                await seen.node.here("session 5 of anna active without a seat (XSync")
                await seen.node.until(lambda p: not p.present, "away again")


@needs_x
@in_loop
async def test_a_display_of_no_session_is_reported_by_itself(folder: Path) -> None:
    """An X server that a closed session has left, beside an SSH session with its terminal."""
    with Xvfb() as x:
        async with world(folder, Type="tty", TTY="pts/3") as seen:
            x_socket(seen, x.name)
            seen.start_agent()

            def proof() -> Any:
                return seen.node.agent_reports.display_proof(x.name, ME, CLOCK.now_s())

            await eventually(lambda: proof().source and not proof().active, lambda: f"idle; {proof()}")
            await asyncio.to_thread(x.touch)
            await eventually(lambda: proof().active, lambda: f"a touch; {proof()}")
            assert seen.node.agent_reports.other_displays() == [(x.name, ME)]
            assert not seen.node.now.present


class Source:
    """A compositor that offers nothing, and its process."""

    pid = os.getpid()
    reading = None


class Watched:
    source, reading, fault = Source(), None, Lacking("wayland-0 offers neither")


def test_a_hung_gnome_is_named_and_not_what_it_lacks(folder: Path) -> None:
    """GNOME's shell speaks on the bus, and offers no other way."""

    async def story() -> None:
        agent = Agent(folder / "node", runtime=folder, x_folder=folder)
        agent._displays = {("wayland", "wayland-0"): Watched()}  # type: ignore[dict-item]
        own = OwnSession("3", "wayland", "")
        agent._sessions = {"3": own}
        agent._homes = Homes(agent._sessions)
        (entry,) = agent.report()["sessions"]
        assert (entry["why"], entry["hung"], entry["displays"]) == ("wayland-0 offers neither", False, ["wayland-0"])
        bus = BusIdle(f"unix:path={folder}/no-bus")
        bus.pid = Source.pid
        agent._desktop = (bus, Watched())  # type: ignore[assignment]
        (entry,) = agent.report()["sessions"]
        comm = Path("/proc/self/comm").read_text().strip()
        assert (entry["why"], entry["hung"]) == (f"the desktop does not answer ({comm}, pid {os.getpid()})", True)

    asyncio.run(story())


@in_loop
async def test_typing_in_terminals_of_ours(folder: Path) -> None:
    async with world(folder, Type="tty", TTY="pts/0") as seen:
        agent = seen.start_agent()
        await eventually(lambda: seen.node.agent_reports._reports, "a report")
        master, slave = pty.openpty()  # it came after the agent
        try:
            watched = agent._terminals._watcher
            await eventually(lambda: os.ttyname(slave) in watched.watched, "it is watched")
            for _ in range(2):
                seen.node.woken.clear()
                begun_s = CLOCK.now_s()
                os.write(master, b"x\n")
                os.read(slave, 10)
                await asyncio.wait_for(seen.node.woken.wait(), 5)
                now = seen.node.typed
                assert now.sign == f"anna active on {os.ttyname(slave).removeprefix('/dev/')}"
                assert begun_s <= now.last_sign_at_s + 0.01
                await asyncio.sleep(1.1)  # reported once a second at most
        finally:
            os.close(master)
            os.close(slave)


@in_loop
async def test_sessions_of_others_are_not_looked_at(folder: Path) -> None:
    async with world(folder, Type="wayland", User=(ME + 1, "/u"), Name="bert") as seen:
        with IdleServer(seen.runtime / "wayland-0", 2):
            seen.start_agent()
            await eventually(lambda: seen.node.agent_reports._reports, "a report")
            await asyncio.sleep(0.5)
            await seen.node.here(f"session 3 of bert on seat0, idle time unknown: {INSTALL_AGENT}")


@in_loop
async def test_the_node_may_come_later_go_and_come_again(folder: Path) -> None:
    async with world(folder, Type="wayland") as seen:
        await seen.node.server.stop()
        shutil.rmtree(seen.node.path.parent)
        with IdleServer(seen.runtime / "wayland-0", 2):
            seen.start_agent()
            await eventually(lambda: seen.logged, "a word")
            assert f"no daemon listens at {seen.node.path}" in seen.logged
            for _ in range(3):
                await seen.node.server.start()
                await seen.node.away("wayland-0")
                await seen.node.server.stop()
                await seen.node.here(INSTALL_AGENT)


@own_terminals
@in_loop
async def test_reports_stay_young_and_cost_a_line_each(folder: Path) -> None:
    async with world(folder, 1.5, Type="wayland") as seen:
        with IdleServer(seen.runtime / "wayland-0", 2):
            heard: list[dict[str, Any]] = []
            hear = seen.node.agent_reports.receive
            seen.node.agent_reports.receive = lambda uid, m: (heard.append(dict(m)), hear(uid, m))[1]  # type: ignore[method-assign]
            seen.start_agent()
            await seen.node.away("wayland-0")
            heard.clear()
            begun_s = time.monotonic()
            while time.monotonic() - begun_s < 4:
                assert not seen.node.now.present
                await asyncio.sleep(0.05)
            assert 2 <= len(heard) <= 4
            assert max(len(json.dumps(m)) for m in heard) < 400


# --- peers that are no agent


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


def line(**fields: Any) -> bytes:
    entry = {"id": "3", "source": "made up", "idle": 100.0, "inhibitors": [], "why": ""}
    return json.dumps({"v": 1, "tell": "presence", "sessions": [entry], "terminals": None} | fields).encode() + b"\n"


@pytest.mark.skipif(ME != 0, reason="takes another user's part, so it needs root")
@in_loop
async def test_another_users_word_about_a_session_counts_for_nothing(folder: Path) -> None:
    folder.chmod(0o755)
    async with world(folder, Type="wayland") as seen:
        peer = socket.socket(socket.AF_UNIX)
        os.seteuid(65534)
        try:
            peer.connect(str(seen.node.path))
        finally:
            os.seteuid(0)
        peer.sendall(line())
        peer.settimeout(5)
        assert b'"ok": true' in await asyncio.to_thread(peer.recv, 4096)
        await seen.node.here(INSTALL_AGENT)
        (shown,) = seen.node.agent_reports.details()["idle sources"]
        assert shown == "session 3: uid 65534 reports it, but does not own it: not counted"
        peer.close()
        await eventually(lambda: not seen.node.agent_reports._reports, "its end")


@in_loop
async def test_the_owners_word_counts_until_it_is_silent_or_gone(folder: Path) -> None:
    async with world(folder, 1.0, Type="wayland") as seen:
        reader, writer = await connect(seen.node.path)
        writer.write(line())
        assert json.loads(await reader.readline())["every_s"] == pytest.approx(2 / 3)
        await seen.node.away("made up")
        await seen.node.here("the session agent has been silent for 1 s")
        writer.write(line())
        await seen.node.away("made up")
        writer.close()
        await seen.node.here(INSTALL_AGENT)


@in_loop
async def test_the_newest_connection_of_a_user_replaces_the_older(folder: Path) -> None:
    async with world(folder, Type="wayland") as seen:
        old_reader, old = await connect(seen.node.path)
        old.write(line())
        await old_reader.readline()
        new_reader, new = await connect(seen.node.path)
        new.write(line())
        await new_reader.readline()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(old_reader.read(), 5) == b""
        await seen.node.away("made up")
        new.close()


@pytest.mark.parametrize(
    "raw",
    [b"{}\n", b"[]\n", b"\n", b"x" * 100_000, b'{"v":1,"tell":"presence","sessions":3}\n', b"\xff\xfe\n", b'{"v":2}\n',
     b"[" * 4000 + b"\n"],
    ids=lambda raw: repr(raw[:20]),
)  # fmt: skip
def test_garbage_ends_the_connection_and_nothing_else(folder: Path, raw: bytes) -> None:
    async def story() -> None:
        async with world(folder, Type="wayland") as seen:
            for first in (line(), b""):
                reader, writer = await connect(seen.node.path)
                writer.write(first)
                if first:
                    await reader.readline()
                    await seen.node.away("made up")
                with contextlib.suppress(ConnectionError):
                    writer.write(raw)
                    answer = await asyncio.wait_for(reader.read(), 5)
                    assert not answer or json.loads(answer)["ok"] is False
                await seen.node.here(INSTALL_AGENT)
                writer.close()
            reader, writer = await connect(seen.node.path)
            writer.write(line())
            assert json.loads(await reader.readline())["ok"] is True
            writer.close()

    asyncio.run(asyncio.wait_for(story(), 30))


@in_loop
async def test_a_flood_is_heard_at_its_own_cost(folder: Path) -> None:
    async with world(folder, Type="wayland") as seen:
        heard = 0
        hear = seen.node.agent_reports.receive

        def count(uid: int, message: Any) -> None:
            nonlocal heard
            heard += 1
            hear(uid, message)

        seen.node.agent_reports.receive = count  # type: ignore[method-assign]
        reader, writer = await connect(seen.node.path)
        writer.write(line() * 5000)
        async with watched_loop() as held:
            await asyncio.sleep(1)  # for more than is heard in a second
        assert 0 < heard <= 60
        assert held.longest_s < 0.2
        assert not reader.at_eof()
        writer.transport.abort()
