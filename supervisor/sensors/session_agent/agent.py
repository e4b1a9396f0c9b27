"""The session agent: runs as each person, watches that person's own displays and terminals, and reports to the daemon.

    python -I -m supervisor.sensors.session_agent.agent [--socket PATH | --config DIR]

A user unit (`rae-node-session`) starts it at each login, also on a text console and over SSH. It watches every display of
its user, whatever logind calls the session: each Wayland compositor's idle notifications, or Mutter's idle monitor, and each
X server's idle counter, but not XWayland's, which sees X windows only. The screen saver's answer must do where there is
nothing else. It wakes at their events, and to report that nothing has changed, after it has asked each source again.

A session is reported `active` if one of its displays (`homes.py`) says so; idle if all say so, since the latest time; and
unproven, with the reason, if one of them cannot be seen. Displays that belong to no session are reported by themselves. The
daemon counts what is unproven as active.

To a person who sits at this machine the agent also shows what the node does (`desk.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import glob
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from supervisor.linux import console
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.dbus import LOGIN1, LOGIN1_MANAGER, LOGIN1_PATH, PROPERTIES, BusError, SystemBus, inhibitions
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.linux.small_files import read_small
from supervisor.sensors.presence.logind_session import is_nobody, session_properties
from supervisor.sensors.session_agent.desk import Desk
from supervisor.sensors.session_agent.homes import Homes, Key, OwnSession
from supervisor.sensors.session_agent.reporter import Reporter
from supervisor.sensors.session_agent.session_bus import BusIdle
from supervisor.sensors.session_agent.socket_source import program
from supervisor.sensors.session_agent.source import QUIET_S, Absent, Gone, Hung, Idle, IdleSource, Lacking, boot_s
from supervisor.sensors.session_agent.terminals import OwnTerminals
from supervisor.sensors.session_agent.wayland import WaylandIdle, compositor, sockets
from supervisor.sensors.session_agent.x11 import FOLDER, X11Idle, displays, lock_holder, plain_name

SOCKET: Final = "/run/rae-node/control.sock"
RETRY_S: Final = (1.0, 300.0)
MAX_OTHERS: Final = 16
TYPED_GAP_S: Final = 1.0  # typing is reported about once a second
XWAYLAND: Final = "xwayland"  # how the names of programs begin that show X windows in a Wayland desktop
Readings = dict[Key, Idle]
Faults = dict[Key, Gone]


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
        """Ask a source again; one that does not answer is left, and tried again. It may also hang while somebody is active."""
        if self.source.reading is None:
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
    kind = type(error).__name__
    return error if isinstance(error, Gone) else Gone(f"a fault of the session agent ({kind}), please report it")


class Agent:
    """The whole agent. `socket`: the daemon's control socket. `quiet_s`: how long a desktop must be untouched to be idle.
    `x_folder`: where X servers listen. `choices`: the file with what the person wants to see."""

    def __init__(
        self,
        socket: Path,
        *,
        bus_address: str | None = None,
        session_bus: str = "",
        runtime: Path | None = None,
        x_folder: Path = Path(FOLDER),
        quiet_s: float = QUIET_S,
        choices: Path | None = None,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._uid = os.getuid()
        self._runtime = runtime or Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{self._uid}"))
        self._session_bus = session_bus or os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={self._runtime}/bus")
        self._quiet_s, self._log, self._x_folder = quiet_s, log, x_folder
        self._sessions: dict[str, OwnSession] = {}
        self._displays: dict[Key, WatchedSource] = {}
        self._xwayland: set[str] = set()
        self._guessed: set[str] = set()
        self._homes = Homes({})
        self._desktop: tuple[BusIdle, WatchedSource] | None = None
        self._environment: dict[str, str] = {}
        self._look_now = asyncio.Event()
        self._logind_failed = False
        self._no_events = True  # inotify does not report new sockets
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_S[0]
        self._logged: dict[str, str] = {}
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        self._desk = Desk(socket, self._session_bus, choices or config / "rae-node/desk.json", log)
        self._reporter = Reporter(socket, self.report, self.prove, log, self._desk.news)
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
                changes = flags.CREATE | flags.DELETE | flags.MOVED_TO
                self._no_events = not watcher.add(self._runtime, changes) or not watcher.add(self._x_folder, changes)
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
            await self._desk.stop()
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
        self._homes = Homes(sessions)
        self._terminals.look()
        await self._find_displays()
        if changed:
            for watched in self._all():
                watched.retry()
            self._reporter.changed()

    async def _own_sessions(self) -> dict[str, OwnSession]:
        (listed,) = await self._bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListSessions", expect="a(susso)")
        found: dict[str, OwnSession] = {}
        seated = unlocked = False
        for number, uid, _, _, path in listed:
            if uid != self._uid:
                continue
            known = await session_properties(self._bus, path)
            if known is None or known.get("State") == "closing" or is_nobody(str(known.get("Class", ""))):
                continue  # None: it ended between the two calls
            display, terminal = str(known.get("Display", "")), bool(known.get("TTY") or known.get("Remote"))
            found[number] = own = OwnSession(number, str(known.get("Type", "")), plain_name(display) or display, terminal)
            at_seat = not known.get("Remote") and bool(known.get("Seat", [""])[0])
            if own.graphical and at_seat and known.get("Class") == "user":
                seated = True
                unlocked = unlocked or bool(known.get("Active") and not known.get("LockedHint"))
        self._desk.seat(seated, unlocked)
        return found

    async def _find_displays(self) -> None:
        wanted: dict[Key, Callable[[], IdleSource]] = {}
        for path in sockets(self._runtime):
            wanted["wayland", str(path)] = partial(WaylandIdle, path, self._quiet_s)
        servers = dict(displays(self._x_folder))
        if self._desktop is None and (wanted or servers or any(own.graphical for own in self._sessions.values())):
            desktop = BusIdle(self._session_bus, self._quiet_s, partial(inhibitions, self._bus))
            self._desktop = (desktop, WatchedSource(desktop, self._desktop_changed))
        named = {own.display for own in self._sessions.values() if own.display and own.type != "wayland"}
        nameless = any(own.type == "x11" and not own.display for own in self._sessions.values())
        mine = {name for name, uid in servers.items() if uid == self._uid}
        roots = {name for name, uid in servers.items() if uid == 0} - named - mine
        self._guessed = set()
        if nameless or roots:
            environment = await self._x_display()  # root's server may show our session
            if environment and (nameless or environment in roots):
                named.add(environment)
            elif nameless:
                self._guessed = roots  # whose it is, nobody tells us (a login screen): it lets us in, or it is another's
        self._xwayland = {name for name in mine - named if self._is_xwayland(name)}
        for name in sorted((named | mine | self._guessed) - self._xwayland):
            wanted["x11", name] = partial(X11Idle, name, self._cookies, self._quiet_s)
        self._look_again((nameless and not named | mine | self._guessed) or self._logind_failed or self._no_events)
        for key in self._displays.keys() - wanted.keys():
            await self._displays.pop(key).stop()
            self._reporter.changed()
        for key, make in wanted.items():
            if key not in self._displays:
                self._displays[key] = WatchedSource(make(), self._reporter.changed)
            elif self._displays[key].fault is not None:
                self._displays[key].retry()

    def _is_xwayland(self, display: str) -> bool:
        """Whether a compositor shows the X display. It listens before it starts the server."""
        holder = lock_holder(display)
        if read_small(f"/proc/{holder}/comm").lower().startswith(XWAYLAND):
            return True
        return bool(holder) and any(compositor(path) == holder for path in sockets(self._runtime))

    def _look_again(self, wanted: bool) -> None:
        """Look again later, where no event will come: for an X display that the user's manager learns of at some time, for a
        logind that did not answer, and, without inotify, for a display's socket."""
        if self._retry is not None:
            self._retry.cancel()
        self._retry_s = min(2 * self._retry_s, RETRY_S[1]) if wanted else RETRY_S[0]
        self._retry = asyncio.get_running_loop().call_later(self._retry_s, self._look_now.set) if wanted else None

    async def _x_display(self) -> str:
        if self._desktop is not None:
            self._environment = await self._desktop[0].environment()
        return plain_name(self._environment.get("DISPLAY", "")) or plain_name(os.environ.get("DISPLAY", ""))

    def _cookies(self) -> list[Path]:
        """The files in which display managers put the cookie, if they are ours."""
        named = [self._environment.get("XAUTHORITY", ""), os.environ.get("XAUTHORITY", "")]
        for pattern in (f"{self._runtime}/xauth_*", f"{self._runtime}/gdm/Xauthority", "/tmp/xauth_*"):  # noqa: S108 - sddm's place; only files of ours are read
            named += sorted(glob.glob(pattern))
        named.append(str(Path.home() / ".Xauthority"))
        return [Path(name) for name in dict.fromkeys(named) if name and _is_ours(name, self._uid)]

    def _runtime_changed(self, events: list[Event]) -> None:
        names = [os.path.basename(event.path) for event in events]
        if any(event.overflow for event in events) or any(name.startswith(("wayland-", "xauth", "X")) for name in names):
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
        homes = self._homes.of({key: watched.source.pid for key, watched in self._displays.items()})
        sessions = [entry for own in self._sessions.values() if (entry := self._session(own, homes, now_s)) is not None]
        others = [entry for key, home in homes.items() if not home and (entry := self._other(key, now_s)) is not None]
        for entry in [*sessions, *others]:
            if any(not name.startswith(":") for name in entry["displays"]):
                entry["displays"] += sorted(self._xwayland)
                break
        typed_s = self._terminals.typed_at_s
        typed = None if typed_s is None else {"age_s": round(max(0.0, now_s - typed_s), 3), "on": self._terminals.typed_on}
        return {"sessions": sessions, "terminals": typed, "others": others[:MAX_OTHERS]}

    def _session(self, own: OwnSession, homes: dict[Key, str], now_s: float) -> dict[str, Any] | None:
        keys = [key for key, home in homes.items() if home == own.id]
        readings, faults = self._read(keys)
        inhibitors = [name for reading in readings.values() for name in reading.inhibitors]
        if self._desktop is not None:
            desktop, watched = self._desktop
            of_desktop = watched.reading
            speaks = of_desktop is not None and self._desktop_home(of_desktop.pid, homes) == own.id
            if of_desktop is not None and speaks:
                readings["desktop", ""] = of_desktop
                # Mutter speaks only for its own compositor; the screen saver for a desktop that says nothing itself.
                faults = {k: f for k, f in faults.items() if not self._is_spoken_for(k, f, of_desktop.pid)}
            if own.graphical and self._desktop_home(0, homes) == own.id:
                nothing_else = not readings or (speaks and of_desktop is not None and of_desktop.pid == 0)
                desktop.poll(nothing_else and all(isinstance(fault, Lacking) for fault in faults.values()))
            if speaks or (own.graphical and (of_desktop is None or not self._desktop_home(of_desktop.pid, homes))):
                inhibitors = [*desktop.inhibitors] or inhibitors
        if not own.graphical and not readings and not faults:
            return None  # it has only its terminal
        if not faults and (why := self._lacks(own, readings)):
            faults["", ""] = why
        return self._entry(own.id, readings, faults, inhibitors, keys, now_s)

    def _other(self, key: Key, now_s: float) -> dict[str, Any] | None:
        """A display that belongs to none of the sessions."""
        readings, faults = self._read([key])
        reading = self._desktop[1].reading if self._desktop is not None else None
        if reading is not None and reading.pid and self._is_spoken_for(key, faults.get(key), reading.pid):
            readings, faults = {key: reading}, {}
        if not readings and not faults:
            return None
        return self._entry(_short(key), readings, faults, [], [key], now_s)

    def _entry(
        self, name: str, readings: Readings, faults: Faults, inhibitors: list[str], keys: list[Key], now_s: float
    ) -> dict[str, Any]:
        idle: str | float = "active"
        source = why = ""
        active = [reading for reading in readings.values() if reading.idle_since_s is None]
        hung: list[Gone] = [fault for fault in faults.values() if isinstance(fault, Hung)]
        if active:
            source = active[0].source
        elif faults:
            why = str([*hung, *faults.values()][0])
        else:
            since_s, source = max((reading.idle_since_s or 0.0, reading.source) for reading in readings.values())
            idle = round(max(0.0, now_s - since_s), 3)
        self._log_once(name, source or f"idle time unknown: {why}")
        return {
            "id": name, "source": source, "idle": idle, "inhibitors": list(dict.fromkeys(inhibitors)), "why": why,
            "hung": bool(hung), "displays": [_short(key) for key in keys],
        }  # fmt: skip

    def _read(self, keys: list[Key]) -> tuple[Readings, Faults]:
        """What the displays say, and why others cannot be read. A socket that a dead server has left is no display."""
        readings: Readings = {}
        faults: Faults = {}
        for key in keys:
            watched = self._displays[key]
            if (reading := watched.reading) is not None:
                readings[key] = reading
            elif isinstance(watched.fault, Lacking) and self._is_mute(watched.source.pid):
                faults[key] = Hung(f"the desktop does not answer ({program(watched.source.pid)})")
            elif isinstance(watched.fault, Hung) or not (_short(key) in self._guessed or isinstance(watched.fault, Absent)):
                faults[key] = watched.fault or Gone(f"{_short(key)} has not answered yet")
        return readings, faults

    def _lacks(self, own: OwnSession, readings: Readings) -> Gone | None:
        """Why the readings do not prove the session idle: a display of another kind beside its own says little."""
        kinds = {kind for kind, _ in readings}
        if own.type == "x11" and own.display and ("x11", own.display) not in readings:
            watched = self._displays.get(("x11", own.display))
            return (watched and watched.fault) or Gone(f"display {own.display} has not answered yet")
        proper = {"wayland": {"wayland", "desktop"}, "x11": {"x11", "desktop"}}.get(own.type, kinds)
        return None if kinds & proper else Gone("the session agent finds no display of it")

    def _is_spoken_for(self, key: Key, fault: Gone | None, pid: int) -> bool:
        """Whether the desktop's word on the bus, from that process (0: not known), is also this display's."""
        return key in self._displays and isinstance(fault, Lacking) and pid in (0, self._displays[key].source.pid)

    def _is_mute(self, pid: int) -> bool:
        """Whether a compositor should say on the bus how long it is idle (GNOME's shell), and does not."""
        if self._desktop is None or not pid or self._desktop[0].pid != pid:
            return False
        reading = self._desktop[0].reading
        return reading is None or reading.pid != pid

    def _desktop_home(self, pid: int, homes: dict[Key, str]) -> str:
        """The session of the desktop that speaks on the user's bus, from a process; 0: not known."""
        for key, home in homes.items():
            if pid and self._displays[key].source.pid == pid:
                return home
        if (home_of_process := self._homes.of_process(pid)) is not None:
            return home_of_process
        graphical = [own.id for own in self._sessions.values() if own.graphical]
        seen = {home for key, home in homes.items() if home and self._displays[key].reading is not None}
        return graphical[0] if len(graphical) == 1 else self._homes.only("desktop", seen)

    def _log_once(self, what: str, text: str) -> None:
        if self._logged.get(what) != text:
            self._logged[what] = text
            self._log(f"session {what}: {text}" if what in self._sessions else text)


def _short(key: Key) -> str:
    """A display for people: ":7", "wayland-0"."""
    return os.path.basename(key[1])


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
