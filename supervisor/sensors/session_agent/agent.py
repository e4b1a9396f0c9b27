"""The session agent: runs as each person, looks at that person's own desktops and terminals, and tells the daemon.

    python -I -m supervisor.sensors.session_agent.agent [--socket PATH | --config DIR]

A user unit (`rae-node-session`) starts it at each login, also on a text console and over SSH. It finds the sessions of
its own user by logind, and for each the sources that a probe proves: a Wayland compositor's idle notifications, Mutter's
idle monitor, an X server's idle counter (only where logind says x11, T1), else the screen saver's word. Everything is
an event; it wakes up by itself only to say that all is as it was, and proves that first: each source is asked anew.

A session is told `active` if any of its sources says so, idle if all of them do, since the latest; and unproven, with
the reason, if one of its displays cannot be seen. What is not proven, the daemon takes for a person.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import glob
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.linux.bounded import wait_for_event
from supervisor.linux.dbus import LOGIN1, LOGIN1_MANAGER, LOGIN1_PATH, PROPERTIES, BusError, SystemBus
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.sensors.presence.logind_session import session_properties
from supervisor.sensors.session_agent.reporter import Reporter
from supervisor.sensors.session_agent.source import QUIET_S, Absent, Gone, Idle, IdleSource, Lacking, boot_s
from supervisor.sensors.session_agent.terminals import OwnTerminals

if TYPE_CHECKING:
    from supervisor.sensors.session_agent.session_bus import BusIdle

SOCKET: Final = "/run/rae-node/control.sock"
TERMINALS: Final = ("tty", "unspecified", "web")
RETRY_S: Final = (1.0, 300.0)
TYPED_GAP_S: Final = 1.0  # somebody who types is told no more often


@dataclass(frozen=True, slots=True)
class Own:
    """A session of ours, by logind."""

    id: str
    type: str
    display: str

    @property
    def graphical(self) -> bool:
        return self.type not in TERMINALS


class Kept:
    """A source that is watched for as long as its display is there, and tried again when it fails."""

    def __init__(self, source: IdleSource, changed: Callable[[], None]) -> None:
        self.source, self._changed = source, changed
        self.fault: Gone | None = None
        self._poke = asyncio.Event()
        self._doubt = asyncio.Event()
        self._wait_s = RETRY_S[0]
        self._task = asyncio.ensure_future(self._run())

    @property
    def reading(self) -> Idle | None:
        return self.source.reading

    @property
    def pid(self) -> int:
        """The process whose display it is, 0 where not known."""
        return int(getattr(self.source, "pid", 0))

    def poke(self) -> None:
        """Something has changed: try again now."""
        self._poke.set()

    async def _run(self) -> None:
        while True:
            self._poke.clear()
            running = asyncio.ensure_future(self.source.run(self._alive))
            doubt = asyncio.ensure_future(self._doubt.wait())
            events: list[asyncio.Future[Any]] = [running, doubt]
            try:
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in events:
                    task.cancel()
            (ended, _) = await asyncio.gather(*events, return_exceptions=True)
            if isinstance(ended, Exception):
                self.fault = _gone(ended)
            self._doubt.clear()
            self._changed()
            await wait_for_event(self._poke, self._wait_s)
            self._wait_s = min(2 * self._wait_s, RETRY_S[1])

    def _alive(self) -> None:
        self.fault, self._wait_s = None, RETRY_S[0]
        self._changed()

    async def prove(self) -> None:
        """Ask anew; what does not answer is dropped, and tried again."""
        reading = self.source.reading
        if reading is None or reading.idle_since_s is None:
            return
        try:
            await self.source.prove()
        except Exception as error:  # noqa: BLE001 - whatever it is, the source cannot tell, and the others still can
            self.fault = _gone(error)
            self._doubt.set()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def doubted(self) -> bool:
        return self._doubt.is_set()


def _gone(error: Exception) -> Gone:
    """A fault of ours in a source is one more way not to know."""
    return error if isinstance(error, Gone) else Gone(f"{type(error).__name__}: {error}")


class Agent:
    """All of it. `bus_address`, `session_bus`, `runtime`, `dev`: where to look; `quiet_s` as in `idle`."""

    def __init__(
        self,
        socket: Path,
        *,
        bus_address: str | None = None,
        session_bus: str = "",
        runtime: Path | None = None,
        dev: Path = Path("/dev"),
        quiet_s: float = QUIET_S,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._uid = os.getuid()
        self._runtime = runtime or Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{self._uid}"))
        self._session_bus = session_bus or os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={self._runtime}/bus")
        self._quiet_s, self._say = quiet_s, say
        self._sessions: dict[str, Own] = {}
        self._kept: dict[tuple[str, str], Kept] = {}
        self._desktop: tuple[BusIdle, Kept] | None = None
        self._environment: dict[str, str] = {}
        self._look_now = asyncio.Event()
        self._unseen = False  # logind did not tell the sessions
        self._untold = True  # nothing tells of sockets that come
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_S[0]
        self._typed_timer: asyncio.TimerHandle | None = None
        self._typed_told_s = 0.0
        self._said: dict[str, str] = {}
        self._terminals = OwnTerminals(self._typed, dev)
        self._reporter = Reporter(socket, self.report, say)
        self._bus = SystemBus(bus_address)
        self._bus.watch(LOGIN1, lambda _: self._look_now.set())
        self._bus.subscribe(LOGIN1, LOGIN1_MANAGER, "", lambda _: self._look_now.set())
        self._bus.subscribe(LOGIN1, PROPERTIES, "PropertiesChanged", lambda _: self._look_now.set())

    async def run(self) -> None:
        """Look and tell, for as long as nobody cancels it."""
        await self._bus.start()
        self._terminals.start()
        telling = None
        try:
            with Watcher(self._runtime_changed) as watcher:
                self._untold = not watcher.add(self._runtime, flags.CREATE | flags.DELETE | flags.MOVED_TO)
                await self._look()
                telling = asyncio.ensure_future(self._reporter.run())
                while True:
                    await self._look_now.wait()
                    self._look_now.clear()
                    await self._look()
        finally:
            self._look_again(False)
            if telling is not None:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
            await asyncio.gather(*(kept.stop() for kept in self._all()), return_exceptions=True)
            self._terminals.stop()
            await self._bus.stop()

    def _all(self) -> list[Kept]:
        return [*self._kept.values(), *([self._desktop[1]] if self._desktop else [])]

    # --- which sessions and displays there are

    async def _look(self) -> None:
        try:
            sessions, self._unseen = await self._own_sessions(), False
        except BusError as error:
            self._tell_once("logind", f"sessions unknown: {error}")
            sessions, self._unseen = {}, True  # nothing is proven of a session that cannot be seen
        changed = sessions != self._sessions
        self._sessions = sessions
        self._terminals.look()
        await self._find_displays()
        if changed:
            for kept in self._all():
                kept.poke()
            self._reporter.tell()

    async def _own_sessions(self) -> dict[str, Own]:
        (listed,) = await self._bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListSessions", expect="a(susso)")
        found: dict[str, Own] = {}
        for number, uid, _, _, path in listed:
            if uid != self._uid:
                continue
            known = await session_properties(self._bus, path)
            if known is not None and known.get("State") != "closing":  # None: it ended between the two questions
                found[number] = Own(number, str(known.get("Type", "")), str(known.get("Display", "")))
        return found

    async def _find_displays(self) -> None:
        from supervisor.sensors.session_agent.wayland import WaylandIdle, sockets

        wanted: dict[tuple[str, str], Callable[[], IdleSource]] = {}
        if self._sessions:
            for path in sockets(self._runtime):
                wanted["wayland", str(path)] = lambda path=path: WaylandIdle(path, self._quiet_s)  # type: ignore[misc]
        if wanted or any(own.graphical for own in self._sessions.values()):
            self._join_desktop()
        nameless = False
        for own in self._sessions.values():
            if own.type == "x11":
                name = await self._x_display(own)
                nameless = nameless or not name
                if name:
                    wanted["x11", name] = lambda name=name: self._x11(name)  # type: ignore[misc]
        self._look_again(nameless or self._unseen or self._untold)
        for key in self._kept.keys() - wanted.keys():
            await self._kept.pop(key).stop()
            self._reporter.tell()
        for key, make in wanted.items():
            if key in self._kept:
                if self._kept[key].fault is not None:
                    self._kept[key].poke()
            else:
                self._kept[key] = Kept(make(), self._changed)

    def _look_again(self, wanted: bool) -> None:
        """An X display that logind does not know is told to the user's manager at some time, and nobody says when; nor
        when a logind that did not answer does again, nor, without inotify, when a compositor's socket comes."""
        if self._retry is not None:
            self._retry.cancel()
        self._retry_s = min(2 * self._retry_s, RETRY_S[1]) if wanted else RETRY_S[0]
        self._retry = asyncio.get_running_loop().call_later(self._retry_s, self._look_now.set) if wanted else None

    def _join_desktop(self) -> None:
        if self._desktop is None:
            from supervisor.sensors.session_agent.session_bus import BusIdle

            desktop = BusIdle(self._session_bus, self._quiet_s)
            self._desktop = (desktop, Kept(desktop, self._desktop_changed))

    async def _x_display(self, own: Own) -> str:
        if not own.display and self._desktop is not None:
            self._environment = await self._desktop[0].environment()
        return own.display or self._environment.get("DISPLAY", "") or os.environ.get("DISPLAY", "")

    def _x11(self, name: str) -> IdleSource:
        from supervisor.sensors.session_agent.x11 import X11Idle

        return X11Idle(name, self._cookies, self._quiet_s)

    def _cookies(self) -> list[Path]:
        """Where display managers put the cookie (T2), as far as it is ours."""
        named = [self._environment.get("XAUTHORITY", ""), os.environ.get("XAUTHORITY", "")]
        for pattern in (f"{self._runtime}/xauth_*", f"{self._runtime}/gdm/Xauthority", "/tmp/xauth_*"):  # noqa: S108 - sddm puts it there; only files of ours are read
            named += sorted(glob.glob(pattern))
        named.append(str(Path.home() / ".Xauthority"))
        return [Path(name) for name in dict.fromkeys(named) if name and _is_ours(name, self._uid)]

    def _runtime_changed(self, events: list[Event]) -> None:
        """A compositor's socket or a cookie has come or gone."""
        if any(event.overflow or Path(event.path).name.startswith(("wayland-", "xauth")) for event in events):
            self._look_now.set()

    # --- what is told

    def _changed(self) -> None:
        self._reporter.tell()

    def _desktop_changed(self) -> None:
        if self._desktop is not None and self._desktop[0].reading is None:
            for kept in self._kept.values():  # the desktop that spoke for it is gone, and maybe its display with it
                if isinstance(kept.fault, Lacking):
                    kept.poke()
        self._changed()

    def _typed(self) -> None:
        wait_s = self._typed_told_s + TYPED_GAP_S - boot_s()
        if wait_s <= 0:
            self._tell_typed()
        elif self._typed_timer is None:
            self._typed_timer = asyncio.get_running_loop().call_later(wait_s, self._tell_typed)

    def _tell_typed(self) -> None:
        self._typed_timer, self._typed_told_s = None, boot_s()
        self._reporter.tell()

    async def report(self, again: bool) -> dict[str, Any]:
        """What is known now; `again`: nothing has changed, so prove it."""
        if again:
            await asyncio.gather(*(kept.prove() for kept in self._all()))
        now_s = boot_s()
        sessions = [told for own in self._sessions.values() if (told := self._told(own, now_s)) is not None]
        typed_s = self._terminals.typed_at_s
        typed = None if typed_s is None else {"age_s": round(max(0.0, now_s - typed_s), 3), "on": self._terminals.typed_on}
        return {"sessions": sessions, "terminals": typed}

    def _told(self, own: Own, now_s: float) -> dict[str, Any] | None:
        readings, faults, inhibitors = self._seen(own)
        why = ""
        if not own.graphical and not readings:
            return None  # its terminal is all it has
        active = [reading for reading in readings if reading.idle_since_s is None]
        if active:
            source, idle = active[0].source, "active"
        elif faults or not readings:
            source, idle, why = "", "active", str(faults[0]) if faults else "the session agent finds no display of it"
        else:
            last = max(readings, key=lambda reading: reading.idle_since_s or 0.0)
            source, idle = last.source, round(max(0.0, now_s - (last.idle_since_s or 0.0)), 3)  # type: ignore[assignment]
        self._tell_once(own.id, source or f"idle time unknown: {why}")
        return {"id": own.id, "source": source, "idle": idle, "inhibitors": inhibitors, "why": why}

    def _seen(self, own: Own) -> tuple[list[Idle], list[Gone], list[str]]:
        """Readings of a session's displays, what keeps others from being read, and who keeps it from idling."""
        readings: list[Idle] = []
        faults: list[Gone] = []
        lacking: list[tuple[int, Gone]] = []
        for (kind, name), kept in self._kept.items():
            mine = own.type == "x11" and name == (own.display or self._environment.get("DISPLAY", name))
            if kind == "wayland":
                mine = self._session_of(kept.pid) == own.id
            reading = None if kept.doubted else kept.reading
            if mine and reading is not None:
                readings.append(reading)
            elif mine and isinstance(kept.fault, Lacking):
                lacking.append((kept.pid, kept.fault))
            elif mine and not isinstance(kept.fault, Absent):
                faults.append(kept.fault or Gone(f"{Path(name).name} has not answered yet"))
        holders = [holder for reading in readings for holder in reading.inhibitors]
        if self._desktop is not None:
            desktop, kept = self._desktop
            said = None if kept.doubted else desktop.reading
            if said is not None and self._session_of(said.pid) == own.id:
                readings.append(said)
                # Mutter speaks for its own compositor only; the screen saver for a desktop that says nothing itself.
                lacking = [(pid, fault) for pid, fault in lacking if said.pid not in (0, pid)]
            if own.graphical and self._session_of(0) == own.id:
                desktop.poll(not faults and (not readings or (said is not None and said.pid == 0)))
                holders = [*desktop.inhibitors, *([] if desktop.inhibitors else holders)]
        return readings, faults + [fault for _, fault in lacking], list(dict.fromkeys(holders))

    def _session_of(self, pid: int) -> str:
        """A process's session by its cgroup; services of the user's manager (GNOME's shell) have none, and belong to the
        only graphical session that there is."""
        with contextlib.suppress(OSError):
            found = re.search(r"/session-([^/]+)\.scope", Path(f"/proc/{pid}/cgroup").read_text()) if pid else None
            if found and found[1] in self._sessions:
                return found[1]
        graphical = [own.id for own in self._sessions.values() if own.graphical]
        return graphical[0] if len(graphical) == 1 else ""

    def _tell_once(self, what: str, text: str) -> None:
        if self._said.get(what) != text:
            self._said[what] = text
            self._say(f"session {what}: {text}" if what in self._sessions else text)


def _is_ours(name: str, uid: int) -> bool:
    try:
        return os.stat(name).st_uid == uid
    except OSError:
        return False


def main(argv: list[str]) -> int:
    """The program; ends with SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="rae-node-session", description="Tells the node how long this desktop is idle.")
    parser.add_argument("--socket", help=f"the daemon's control socket (default: $RAE_NODE_SOCKET, else {SOCKET})")
    parser.add_argument("--config", metavar="DIR", help="folder with node.yaml: its paths.runtime holds the socket")
    given = parser.parse_args(argv)
    path = given.socket or os.environ.get("RAE_NODE_SOCKET", SOCKET)
    if given.config and not given.socket:
        from supervisor.config.load import ConfigErrors, load

        try:
            path = load(Path(given.config)).paths.runtime / "control.sock"
        except ConfigErrors as errors:
            sys.stderr.write(f"{errors.problems[0]}\n")
            return 2

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    async def run() -> None:
        agent = asyncio.ensure_future(Agent(Path(path), say=say).run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await agent

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
