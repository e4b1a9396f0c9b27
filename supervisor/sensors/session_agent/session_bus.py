"""What a desktop says on its own bus: Mutter's idle monitor, the ScreenSaver interface, and what keeps it from idling
(`inhibitors.py`).

Mutter (of GNOME, which has no ext-idle-notify) signals both idle and touched. The ScreenSaver interface has only
`GetSessionIdleTime`, without a signal. It is asked every few seconds, only where a session has no other source. Some desktops
answer in seconds and some in milliseconds; how the answers grow shows which, and must go on showing it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from states.observation import NEVER
from supervisor.linux.dbus import BUS, BUS_PATH, BusError, Inhibition, Signal, SystemBus
from supervisor.sensors.session_agent.inhibitors import SAVER, SAVER_PATH, Inhibitors
from supervisor.sensors.session_agent.source import ANSWER_S, QUIET_S, Idle, IdleSource, boot_s

MUTTER: Final = "org.gnome.Mutter.IdleMonitor"
MUTTER_PATH: Final = "/org/gnome/Mutter/IdleMonitor/Core"
AGAIN_S: Final = 10.0
POLL_S: Final = 5.0
PROBE_S: Final = 1.5
BACKOFF_S: Final = (1.0, 60.0)
UNIT_S: Final = 4.0  # answers that grow like seconds for so long are seconds


async def _no_locks() -> Sequence[Inhibition]:
    return ()


class BusIdle(IdleSource):
    """One session bus. `reading` is Mutter's, otherwise the screen saver's, where `poll` allows it. `locks`: logind's list."""

    def __init__(
        self, address: str, quiet_s: float = QUIET_S, locks: Callable[[], Awaitable[Sequence[Inhibition]]] = _no_locks
    ) -> None:
        self._bus = SystemBus(address, backoff_s=BACKOFF_S, name="session bus")
        self._quiet_s = quiet_s
        self._changed: Callable[[], None] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._polling: asyncio.Task[None] | None = None
        self._mutter: Idle | None = None
        self._saver: Idle | None = None
        self._idle_watch = self._active_watch = 0
        self._inhibitors = Inhibitors(self._bus, address, lambda: self._changed(), locks)
        self._again: asyncio.TimerHandle | None = None
        self._saver_there = asyncio.Event()
        self._bus.watch(SAVER, lambda owner: self._saver_there.set() if owner else self._saver_there.clear())
        self._bus.watch(MUTTER, lambda _: self._do(self._begin_mutter()))
        self._bus.subscribe(MUTTER, MUTTER, "WatchFired", self._fired)

    @property
    def reading(self) -> Idle | None:
        return self._mutter or self._saver

    @property
    def inhibitors(self) -> tuple[str, ...]:
        """The programs that keep the desktop from idling."""
        return self._inhibitors.held

    async def run(self, changed: Callable[[], None]) -> None:
        """See `IdleSource`; ends only when cancelled."""
        self._changed = changed
        await self._bus.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.poll(False)
            if self._again is not None:
                self._again.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._inhibitors.stop()
            await self._bus.stop()

    async def prove(self) -> None:
        """See `IdleSource`; never raises."""
        if self._mutter is not None:
            try:
                await self._ask_mutter()
            except BusError:
                self._lose_mutter()

    async def prove_inhibitors(self) -> None:
        """Ask again those that have no signal; never raises."""
        await self._inhibitors.prove()

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
        self._mutter, self._idle_watch, self._active_watch, self.pid = None, 0, 0, 0
        if self._again is not None:
            self._again.cancel()
        if self._bus.owner(MUTTER):
            try:
                (pid,) = await self._bus.call(
                    BUS, BUS_PATH, BUS, "GetConnectionUnixProcessID", MUTTER, signature="s", expect="u"
                )
                self.pid = pid
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
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(AGAIN_S, lambda: self._do(self._begin_mutter()))

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
