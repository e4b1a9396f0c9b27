"""The session agent: runs as each person, watches that person's own desktops and terminals, and reports to the daemon.

    python -I -m supervisor.sensors.session_agent.agent [--socket PATH | --config DIR]

A user unit (`rae-node-session`) starts it at each login, also on a text console and over SSH. For each of its user's
sessions it watches the sources that a probe has proven: a Wayland compositor's idle notifications, Mutter's idle monitor, an
X server's idle counter (only where logind says x11), otherwise the screen saver's answer. It wakes at their events, and to
report that nothing has changed, after it has asked each source again.

A session is reported `active` if one of its sources says so; idle if all say so, since the latest time; and unproven, with
the reason, if one of its displays cannot be seen. The daemon counts what is unproven as active.
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
from functools import partial
from pathlib import Path
from typing import Any, Final

from supervisor.linux import console
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.dbus import LOGIN1, LOGIN1_MANAGER, LOGIN1_PATH, PROPERTIES, BusError, SystemBus, inhibitions
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.sensors.presence.logind_session import TERMINAL_TYPES, session_properties
from supervisor.sensors.session_agent.reporter import Reporter
from supervisor.sensors.session_agent.session_bus import BusIdle
from supervisor.sensors.session_agent.source import QUIET_S, Absent, Gone, Idle, IdleSource, Lacking, boot_s
from supervisor.sensors.session_agent.terminals import OwnTerminals
from supervisor.sensors.session_agent.wayland import WaylandIdle, sockets
from supervisor.sensors.session_agent.x11 import X11Idle

SOCKET: Final = "/run/rae-node/control.sock"
RETRY_S: Final = (1.0, 300.0)
TYPED_GAP_S: Final = 1.0  # typing is reported about once a second


@dataclass(frozen=True, slots=True)
class OwnSession:
    """A session of this user, by logind."""

    id: str
    type: str
    display: str

    @property
    def graphical(self) -> bool:
        return self.type not in TERMINAL_TYPES


class WatchedSource:
    """Runs a source while its display is there, and tries again when it fails. `fault`: why it fails now."""

    def __init__(self, source: IdleSource, changed: Callable[[], None]) -> None:
        self.source, self._changed = source, changed
        self.fault: Gone | None = None
        self._retry_now = asyncio.Event()
        self._doubted = False
        self._running: asyncio.Future[None] | None = None
        self._wait_s = RETRY_S[0]
        self._task = asyncio.ensure_future(self._run())

    @property
    def reading(self) -> Idle | None:
        """What the source says; None: it has no reading, or a proof has failed."""
        return None if self._doubted else self.source.reading

    def retry(self) -> None:
        self._retry_now.set()

    async def _run(self) -> None:
        while True:
            self._retry_now.clear()
            self._running = running = asyncio.ensure_future(self.source.run(self._on_reading))
            try:
                await asyncio.wait([running])
            finally:
                running.cancel()
                (ended,) = await asyncio.gather(running, return_exceptions=True)
            if isinstance(ended, Exception):  # not where `prove` has cancelled it
                self.fault = _gone(ended)
            self._doubted = False
            self._changed()
            await wait_for_event(self._retry_now, self._wait_s)
            self._wait_s = min(2 * self._wait_s, RETRY_S[1])

    def _on_reading(self) -> None:
        self.fault, self._wait_s = None, RETRY_S[0]
        self._changed()

    async def prove(self) -> None:
        """Ask a source that says idle again; one that does not answer is left, and tried again."""
        reading = self.source.reading
        if reading is None or reading.idle_since_s is None:
            return
        try:
            await self.source.prove()
        except Exception as error:  # noqa: BLE001 - after any fault this source has no reading; the others still do
            self.fault, self._doubted = _gone(error), True
            if self._running is not None:
                self._running.cancel()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _gone(error: Exception) -> Gone:
    """A fault of ours in a source is a reason too."""
    return error if isinstance(error, Gone) else Gone(f"{type(error).__name__}: {error}")


class Agent:
    """The whole agent. `socket`: the daemon's control socket. `quiet_s`: how long a desktop must be untouched to be idle."""

    def __init__(
        self,
        socket: Path,
        *,
        bus_address: str | None = None,
        session_bus: str = "",
        runtime: Path | None = None,
        quiet_s: float = QUIET_S,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._uid = os.getuid()
        self._runtime = runtime or Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{self._uid}"))
        self._session_bus = session_bus or os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={self._runtime}/bus")
        self._quiet_s, self._log = quiet_s, log
        self._sessions: dict[str, OwnSession] = {}
        self._displays: dict[tuple[str, str], WatchedSource] = {}
        self._desktop: tuple[BusIdle, WatchedSource] | None = None
        self._environment: dict[str, str] = {}
        self._look_now = asyncio.Event()
        self._logind_failed = False
        self._no_events = True  # inotify does not report new sockets
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_S[0]
        self._logged: dict[str, str] = {}
        self._reporter = Reporter(socket, self.report, self.prove, log)
        self._terminals = OwnTerminals(self._typed)
        self._typed_due_s = 0.0  # by the loop's time
        self._bus = SystemBus(bus_address)
        self._bus.watch(LOGIN1, lambda _: self._look_now.set())
        self._bus.subscribe(LOGIN1, LOGIN1_MANAGER, "", lambda _: self._look_now.set())
        self._bus.subscribe(LOGIN1, PROPERTIES, "PropertiesChanged", lambda _: self._look_now.set())

    async def run(self) -> None:
        await self._bus.start()
        self._terminals.start()
        reporting = None
        try:
            with Watcher(self._runtime_changed) as watcher:
                self._no_events = not watcher.add(self._runtime, flags.CREATE | flags.DELETE | flags.MOVED_TO)
                await self._look()
                reporting = asyncio.ensure_future(self._reporter.run())
                while True:
                    await self._look_now.wait()
                    self._look_now.clear()
                    await self._look()
        finally:
            self._look_again(False)
            if reporting is not None:
                reporting.cancel()
                await asyncio.gather(reporting, return_exceptions=True)
            await asyncio.gather(*(watched.stop() for watched in self._all()), return_exceptions=True)
            self._terminals.stop()
            await self._bus.stop()

    def _all(self) -> list[WatchedSource]:
        return [*self._displays.values(), *([self._desktop[1]] if self._desktop else [])]

    # --- which sessions and displays there are

    async def _look(self) -> None:
        try:
            sessions, self._logind_failed = await self._own_sessions(), False
        except BusError as error:
            self._log_once("logind", f"sessions unknown: {error}")
            sessions, self._logind_failed = {}, True  # nothing is proven of a session that cannot be seen
        changed = sessions != self._sessions
        self._sessions = sessions
        self._terminals.look()
        await self._find_displays()
        if changed:
            for watched in self._all():
                watched.retry()
            self._reporter.changed()

    async def _own_sessions(self) -> dict[str, OwnSession]:
        (listed,) = await self._bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListSessions", expect="a(susso)")
        found: dict[str, OwnSession] = {}
        for number, uid, _, _, path in listed:
            if uid != self._uid:
                continue
            known = await session_properties(self._bus, path)
            if known is not None and known.get("State") != "closing":  # None: it ended between the two calls
                found[number] = OwnSession(number, str(known.get("Type", "")), str(known.get("Display", "")))
        return found

    async def _find_displays(self) -> None:
        wanted: dict[tuple[str, str], Callable[[], IdleSource]] = {}
        if self._sessions:
            for path in sockets(self._runtime):
                wanted["wayland", str(path)] = partial(WaylandIdle, path, self._quiet_s)
        if self._desktop is None and (wanted or any(own.graphical for own in self._sessions.values())):
            desktop = BusIdle(self._session_bus, self._quiet_s, partial(inhibitions, self._bus))
            self._desktop = (desktop, WatchedSource(desktop, self._desktop_changed))
        nameless = False
        for own in self._sessions.values():
            if own.type == "x11":
                if name := await self._x_display(own):
                    wanted["x11", name] = partial(X11Idle, name, self._cookies, self._quiet_s)
                else:
                    nameless = True
        self._look_again(nameless or self._logind_failed or self._no_events)
        for key in self._displays.keys() - wanted.keys():
            await self._displays.pop(key).stop()
            self._reporter.changed()
        for key, make in wanted.items():
            if key not in self._displays:
                self._displays[key] = WatchedSource(make(), self._reporter.changed)
            elif self._displays[key].fault is not None:
                self._displays[key].retry()

    def _look_again(self, wanted: bool) -> None:
        """Look again later, where no event will come: for an X display that the user's manager learns of at some time, for a
        logind that did not answer, and, without inotify, for a compositor's socket."""
        if self._retry is not None:
            self._retry.cancel()
        self._retry_s = min(2 * self._retry_s, RETRY_S[1]) if wanted else RETRY_S[0]
        self._retry = asyncio.get_running_loop().call_later(self._retry_s, self._look_now.set) if wanted else None

    async def _x_display(self, own: OwnSession) -> str:
        if not own.display and self._desktop is not None:
            self._environment = await self._desktop[0].environment()
        return own.display or self._environment.get("DISPLAY", "") or os.environ.get("DISPLAY", "")

    def _cookies(self) -> list[Path]:
        """The files in which display managers put the cookie, if they are ours."""
        named = [self._environment.get("XAUTHORITY", ""), os.environ.get("XAUTHORITY", "")]
        for pattern in (f"{self._runtime}/xauth_*", f"{self._runtime}/gdm/Xauthority", "/tmp/xauth_*"):  # noqa: S108 - sddm's place; only files of ours are read
            named += sorted(glob.glob(pattern))
        named.append(str(Path.home() / ".Xauthority"))
        return [Path(name) for name in dict.fromkeys(named) if name and _is_ours(name, self._uid)]

    def _runtime_changed(self, events: list[Event]) -> None:
        if any(event.overflow or Path(event.path).name.startswith(("wayland-", "xauth")) for event in events):
            self._look_now.set()

    def _desktop_changed(self) -> None:
        if self._desktop is not None and self._desktop[0].reading is None:
            for watched in self._displays.values():  # the desktop that spoke for it is gone, and perhaps its display too
                if isinstance(watched.fault, Lacking):
                    watched.retry()
        self._reporter.changed()

    def _typed(self) -> None:
        self._reporter.changed(self._typed_due_s)
        if (now_s := asyncio.get_running_loop().time()) >= self._typed_due_s:
            self._typed_due_s = now_s + TYPED_GAP_S

    # --- the report

    async def prove(self) -> None:
        inhibitors = [self._desktop[0].prove_inhibitors()] if self._desktop else []
        await asyncio.gather(*(watched.prove() for watched in self._all()), *inhibitors)

    def report(self) -> dict[str, Any]:
        now_s = boot_s()
        sessions = [entry for own in self._sessions.values() if (entry := self._session(own, now_s)) is not None]
        typed_s = self._terminals.typed_at_s
        typed = None if typed_s is None else {"age_s": round(max(0.0, now_s - typed_s), 3), "on": self._terminals.typed_on}
        return {"sessions": sessions, "terminals": typed}

    def _session(self, own: OwnSession, now_s: float) -> dict[str, Any] | None:
        readings, faults, inhibitors = self._seen(own)
        idle: str | float = "active"
        source = why = ""
        if not own.graphical and not readings:
            return None  # it has only its terminal
        active = [reading for reading in readings if reading.idle_since_s is None]
        if active:
            source = active[0].source
        elif faults or not readings:
            why = str(faults[0]) if faults else "the session agent finds no display of it"
        else:
            since_s, source = max((reading.idle_since_s or 0.0, reading.source) for reading in readings)
            idle = round(max(0.0, now_s - since_s), 3)
        self._log_once(own.id, source or f"idle time unknown: {why}")
        return {"id": own.id, "source": source, "idle": idle, "inhibitors": inhibitors, "why": why}

    def _seen(self, own: OwnSession) -> tuple[list[Idle], list[Gone], list[str]]:
        """Readings of a session's displays, why others cannot be read, and the programs that keep it from idling."""
        readings: list[Idle] = []
        faults: list[Gone] = []
        lacking: list[tuple[int, Gone]] = []
        for (kind, name), watched in self._displays.items():
            if kind == "wayland":
                is_own = self._session_of(watched.source.pid) == own.id
            else:
                is_own = own.type == "x11" and name == (own.display or self._environment.get("DISPLAY", name))
            if is_own and (reading := watched.reading) is not None:
                readings.append(reading)
            elif is_own and isinstance(watched.fault, Lacking):
                lacking.append((watched.source.pid, watched.fault))
            elif is_own and not isinstance(watched.fault, Absent):
                faults.append(watched.fault or Gone(f"{Path(name).name} has not answered yet"))
        inhibitors = [name for reading in readings for name in reading.inhibitors]
        if self._desktop is not None:
            desktop, watched = self._desktop
            of_desktop = watched.reading
            if of_desktop is not None and self._session_of(of_desktop.pid) == own.id:
                readings.append(of_desktop)
                # Mutter speaks only for its own compositor; the screen saver for a desktop that says nothing itself.
                lacking = [(pid, fault) for pid, fault in lacking if of_desktop.pid not in (0, pid)]
            if own.graphical and self._session_of(0) == own.id:
                desktop.poll(not faults and (not readings or (of_desktop is not None and of_desktop.pid == 0)))
                inhibitors = [*desktop.inhibitors] or inhibitors
        return readings, faults + [fault for _, fault in lacking], list(dict.fromkeys(inhibitors))

    def _session_of(self, pid: int) -> str:
        """A process's session, by its cgroup. A service of the user's manager (GNOME's shell) has none, and belongs to the
        only graphical session."""
        with contextlib.suppress(OSError):
            found = re.search(r"/session-([^/]+)\.scope", Path(f"/proc/{pid}/cgroup").read_text()) if pid else None
            if found and found[1] in self._sessions:
                return found[1]
        graphical = [own.id for own in self._sessions.values() if own.graphical]
        return graphical[0] if len(graphical) == 1 else ""

    def _log_once(self, what: str, text: str) -> None:
        if self._logged.get(what) != text:
            self._logged[what] = text
            self._log(f"session {what}: {text}" if what in self._sessions else text)


def _is_ours(name: str, uid: int) -> bool:
    try:
        return os.stat(name).st_uid == uid
    except OSError:
        return False


def main(argv: list[str]) -> int:
    """The program; ends with SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="rae-node-session", description="Reports to the node how long this desktop is idle.")
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

    async def run() -> None:
        log = partial(print, file=sys.stderr, flush=True)
        agent = asyncio.ensure_future(Agent(Path(path), log=log).run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await agent

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    console.prepare_errors()
    sys.exit(main(sys.argv[1:]))
