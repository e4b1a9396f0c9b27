"""What a desktop says on its own bus: Mutter's idle monitor, the ScreenSaver interface, and what keeps it from idling.

Mutter (of GNOME, which has no ext-idle-notify) signals both idle and touched. The ScreenSaver interface has only
`GetSessionIdleTime`, without a signal. It is asked every few seconds, only where a session has no other source. Some desktops
answer in seconds and some in milliseconds; how the answers grow shows which, and must go on showing it.

Inhibitors are GNOME's and KDE's own lists. Only the name of the program is read, never its reason, which may be the title of
a film. A list without an answer is not an empty list. A game that has registered with gamemode counts as an inhibitor. No
question here starts a service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from states.observation import NEVER
from supervisor.linux.dbus import BUS, BUS_PATH, BusError, Signal, SystemBus
from supervisor.sensors.session_agent.source import ANSWER_S, QUIET_S, Idle, IdleSource, boot_s

MUTTER: Final = "org.gnome.Mutter.IdleMonitor"
MUTTER_PATH: Final = "/org/gnome/Mutter/IdleMonitor/Core"
SAVER: Final = "org.freedesktop.ScreenSaver"
SAVER_PATH: Final = "/org/freedesktop/ScreenSaver"
GNOME: Final = "org.gnome.SessionManager"
GNOME_PATH: Final = "/org/gnome/SessionManager"
GNOME_IDLE: Final = 8  # the flag of inhibitors that keep the session from idling
KDE: Final = "org.kde.Solid.PowerManagement.PolicyAgent"
KDE_PATH: Final = "/org/kde/Solid/PowerManagement/PolicyAgent"
KDE_SCREEN: Final = 4  # the policy of inhibitions that keep the screen on
GAMEMODE: Final = "com.feralinteractive.GameMode"
GAMEMODE_PATH: Final = "/com/feralinteractive/GameMode"
PLAYING: Final = "gamemode"  # its name as an inhibitor, also for presence.ignore_inhibitors
AGAIN_S: Final = 10.0
POLL_S: Final = 5.0
PROBE_S: Final = 1.5
BACKOFF_S: Final = (1.0, 60.0)
MAX_INHIBITORS: Final = 16
MAX_ASKED: Final = 128  # each inhibitor of GNOME's is asked for its kind
UNKNOWN: Final = "somebody (the desktop does not say who inhibits)"
NO_SUCH: Final = tuple(f"{BUS}.Error.Unknown{what}" for what in ("Method", "Object", "Interface"))  # not this desktop's
UNIT_S: Final = 4.0  # answers that grow like seconds for so long are seconds


class BusIdle(IdleSource):
    """One session bus. `reading` is Mutter's, otherwise the screen saver's, where `poll` allows it."""

    def __init__(self, address: str, quiet_s: float = QUIET_S) -> None:
        self._bus = SystemBus(address, backoff_s=BACKOFF_S, name="session bus")
        self._quiet_s = quiet_s
        self._changed: Callable[[], None] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._polling: asyncio.Task[None] | None = None
        self._mutter: Idle | None = None
        self._saver: Idle | None = None
        self._idle_watch = self._active_watch = 0
        self._inhibitors: dict[str, tuple[str, ...]] = {GNOME: (), KDE: (), GAMEMODE: ()}
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._saver_there = asyncio.Event()
        self._bus.watch(SAVER, lambda owner: self._saver_there.set() if owner else self._saver_there.clear())
        self._bus.watch(MUTTER, lambda _: self._do(self._begin_mutter()))
        self._bus.subscribe(MUTTER, MUTTER, "WatchFired", self._fired)
        for name, ask in ((GNOME, self._list_gnome), (KDE, self._list_kde), (GAMEMODE, self._count_games)):
            self._bus.watch(name, lambda _, ask=ask: self._do(ask()))  # type: ignore[misc]
            self._bus.subscribe(name, name, "", lambda _, ask=ask: self._do(ask()))  # type: ignore[misc]

    @property
    def reading(self) -> Idle | None:
        return self._mutter or self._saver

    @property
    def inhibitors(self) -> tuple[str, ...]:
        """The programs that keep the desktop from idling."""
        return tuple(dict.fromkeys(name for names in self._inhibitors.values() for name in names))

    async def run(self, changed: Callable[[], None]) -> None:
        """See `IdleSource`; ends only when cancelled."""
        self._changed = changed
        await self._bus.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.poll(False)
            for timer in self._again.values():
                timer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._bus.stop()

    async def prove(self) -> None:
        """See `IdleSource`; never raises: a bus without Mutter may still list inhibitors."""
        if self._mutter is not None:
            try:
                await self._ask_mutter()
            except BusError:
                self._lose_mutter()

    def poll(self, wanted: bool) -> None:
        """Ask the screen saver, because a session has no other source; or stop that."""
        if wanted and self._polling is None:
            self._polling = asyncio.ensure_future(self._poll())
        elif not wanted and self._polling is not None:
            self._polling.cancel()
            self._polling = self._saver = None

    async def environment(self) -> dict[str, str]:
        """The environment of the user's service manager, such as DISPLAY; empty where there is none."""
        name, path = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
        try:
            listed = (await self._bus.properties(name, path, f"{name}.Manager")).get("Environment", [])
        except BusError:
            return {}
        return dict(entry.partition("=")[::2] for entry in listed)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Mutter

    async def _begin_mutter(self) -> None:
        self._mutter, self._idle_watch, self._active_watch = None, 0, 0
        if MUTTER in self._again:
            self._again.pop(MUTTER).cancel()
        if self._bus.owner(MUTTER):
            try:
                (pid,) = await self._bus.call(
                    BUS, BUS_PATH, BUS, "GetConnectionUnixProcessID", MUTTER, signature="s", expect="u"
                )
                quiet_ms = int(self._quiet_s * 1000)
                (self._idle_watch,) = await self._ask(MUTTER, MUTTER_PATH, "AddIdleWatch", quiet_ms, signature="t", expect="u")
            except BusError:
                self._lose_mutter()
                return
            self._mutter = Idle("Mutter's idle monitor", None, (), pid)
            await self._watch_for_touch()
        self._changed()

    def _lose_mutter(self) -> None:
        """It does not answer. It has gone, which the bus reports, or is busy, as GNOME's shell is while it starts."""
        self._mutter = None
        self._changed()
        self._later(MUTTER, self._begin_mutter)

    async def _watch_for_touch(self) -> None:
        """The watch fires once. The idle time shows a touch that came before the watch was set."""
        try:
            (self._active_watch,) = await self._ask(MUTTER, MUTTER_PATH, "AddUserActiveWatch", expect="u")
            await self._ask_mutter()
        except BusError:
            self._lose_mutter()

    async def _ask_mutter(self) -> None:
        (idle_ms,) = await self._ask(MUTTER, MUTTER_PATH, "GetIdletime", expect="t")
        self._set_mutter(None if idle_ms < self._quiet_s * 1000 else boot_s() - idle_ms / 1000)

    def _set_mutter(self, since_s: float | None) -> None:
        if (old := self._mutter) is None:
            return
        self._mutter = Idle(old.source, since_s, (), old.pid)
        if (old.idle_since_s is None) != (since_s is None):
            self._changed()

    def _fired(self, signal: Signal) -> None:
        if signal.path != MUTTER_PATH or not signal.body:
            return
        if signal.body[0] == self._active_watch:
            self._set_mutter(None)
        elif signal.body[0] == self._idle_watch:
            self._set_mutter(boot_s() - self._quiet_s)
            self._do(self._watch_for_touch())

    # --- the screen saver

    async def _poll(self) -> None:
        unit = _UnitFinder()
        while True:
            if not self._saver_there.is_set():  # no touch is seen meanwhile, and the next one may count in another unit
                self._set_saver(None)
                unit = _UnitFinder()
                await self._saver_there.wait()
            try:
                (value,) = await self._ask(SAVER, SAVER_PATH, "GetSessionIdleTime", expect="u")
            except BusError:
                self._set_saver(None)
                unit = _UnitFinder()
                await asyncio.sleep(BACKOFF_S[1])
                continue
            now_s = boot_s()
            idle_s = unit.idle_s(value, now_s)
            if idle_s is None:
                self._set_saver(None)
            else:
                self._set_saver(Idle(f"{SAVER} (asked every {POLL_S:g} s)", now_s - idle_s if idle_s >= POLL_S else None))
            await asyncio.sleep(PROBE_S if idle_s is None else POLL_S)

    def _set_saver(self, new: Idle | None) -> None:
        old, self._saver = self._saver, new
        if (old is None) != (new is None) or (old and new and (old.idle_since_s is None) != (new.idle_since_s is None)):
            self._changed()

    # --- inhibitors

    async def _list_gnome(self) -> None:
        found: list[str] = []
        paths: list[str] | None = None
        try:
            (paths,) = await self._ask(GNOME, GNOME_PATH, "GetInhibitors", expect="ao")
            for path in paths[:MAX_ASKED]:
                interface = f"{GNOME}.Inhibitor"
                (bits,) = await self._ask(GNOME, path, "GetFlags", interface=interface, expect="u")
                if bits & GNOME_IDLE:
                    found += await self._ask(GNOME, path, "GetAppId", interface=interface, expect="s")
            if len(paths) > MAX_ASKED:
                found.append(UNKNOWN)
        except BusError as error:
            if paths is not None and error.name and self._bus.owner(GNOME):
                return  # one ended between two calls: the signal of its end is on its way
            found = [] if error.name in NO_SUCH else list(self._unanswered(GNOME, self._list_gnome))
        self._set_inhibitors(GNOME, tuple(found))

    async def _list_kde(self) -> None:
        found: tuple[str, ...] = ()
        try:
            (inhibited,) = await self._ask(KDE, KDE_PATH, "HasInhibition", KDE_SCREEN, signature="u", expect="b")
            if inhibited:
                found = (UNKNOWN,)
                (listed,) = await self._ask(KDE, KDE_PATH, "ListInhibitions", expect="a(ss)")
                found = tuple(name for name, _ in listed[:MAX_INHIBITORS]) or ("an unnamed program",)
        except BusError as error:
            if error.name not in NO_SUCH:
                found = self._unanswered(KDE, self._list_kde)
        self._set_inhibitors(KDE, found)

    def _set_inhibitors(self, name: str, found: tuple[str, ...]) -> None:
        if found != self._inhibitors[name]:
            self._inhibitors[name] = found
            self._changed()

    def _unanswered(self, name: str, ask: Callable[[], Coroutine[Any, Any, None]]) -> tuple[str, ...]:
        """What to believe of a list without an answer. Without the service it is empty. Otherwise it is what was known, or an
        unknown program, until the list is answered."""
        if not self._bus.owner(name):
            return ()
        self._later(name, ask)
        return self._inhibitors[name] or (UNKNOWN,)

    def _later(self, name: str, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if name in self._again:
            self._again[name].cancel()
        self._again[name] = asyncio.get_running_loop().call_later(AGAIN_S, lambda: self._do(ask()))

    async def _count_games(self) -> None:
        playing: tuple[str, ...] = ()
        if self._bus.owner(GAMEMODE):
            try:
                games = (await self._bus.properties(GAMEMODE, GAMEMODE_PATH, GAMEMODE)).get("ClientCount")
            except BusError as error:
                games = None
                if not error.name:  # probably busy with its scripts, after which no signal comes
                    self._later(GAMEMODE, self._count_games)
            playing = () if games == 0 and type(games) is int else (PLAYING,)  # without a number it is not idle
        self._set_inhibitors(GAMEMODE, playing)

    async def _ask(
        self, name: str, path: str, member: str, *body: Any, interface: str = "", signature: str = "", expect: str = ""
    ) -> list[Any]:
        return await self._bus.call(
            name, path, interface or name, member, *body, signature=signature, expect=expect, timeout_s=ANSWER_S
        )


Answer = tuple[int, float]  # what the screen saver answered, and when, in seconds of CLOCK_BOOTTIME


class _UnitFinder:
    """Finds out from several answers whether a screen saver counts seconds or milliseconds."""

    def __init__(self) -> None:
        self._unit = 0.0  # not known yet
        self._before: Answer = (0, NEVER)
        self._first: Answer = (0, NEVER)  # since then answers have grown like seconds

    def idle_s(self, value: int, now_s: float) -> float | None:
        """An answer in seconds; None: the unit is not known. An answer in whole seconds is up to one second old."""
        now = value, now_s
        if self._unit and not _goes_on(self._before, now, self._unit):
            self._unit, self._first = 0.0, now
        elif not self._unit and _grows_in_ms(self._before, now):
            self._unit = 0.001
        elif not self._unit and not _grows_in_s(self._first, now):
            self._first = now
        elif not self._unit and now_s - self._first[1] >= UNIT_S:
            self._unit = 1.0
        self._before = now
        return value * self._unit if self._unit else None


def _grows_in_ms(before: Answer, now: Answer) -> bool:
    """Whether it grew like milliseconds; seconds never grow so fast."""
    return 0.9 <= (now[0] - before[0]) / 1000 / max(1e-6, now[1] - before[1]) <= 1.1


def _grows_in_s(first: Answer, now: Answer) -> bool:
    """Whether it grew like whole seconds; while somebody types, milliseconds may do so by chance."""
    return abs(now[0] - first[0] - (now[1] - first[1])) <= 1.0


def _goes_on(before: Answer, now: Answer, unit: float) -> bool:
    """Whether the answer is possible after the one before, with a touch in between or without."""
    passed_s = now[1] - before[1]
    return now[0] * unit <= passed_s + 1.0 or abs((now[0] - before[0]) * unit - passed_s) <= 1.0 + 0.1 * passed_s
