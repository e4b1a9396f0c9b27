"""What keeps a desktop from idling, by every interface of its bus: a film, a talk, a call, a game.

Asked are the session managers of GNOME, MATE and Cinnamon, KDE's policy agent, power managers (Xfce), screen savers that list
their holders, and gamemode. Each is asked when it appears, at its signals, and when the agent proves its report. Only who
keeps the screen on counts: a program that only blocks sleep is no person. Only the name of the program is read, never its
reason, which may be the title of a film. A list without an answer is not an empty list. No question here starts a service.

KDE takes up each of logind's locks, five seconds later and under the holder's name. logind tells of these, so they do not count
here. The node's own lock counts nowhere.

On some desktops a program answers `org.freedesktop.ScreenSaver` that lists nobody, such as light-locker. There the calls to it
are watched (`saver_calls.py`), and a media player that plays counts too (MPRIS): it may have begun before.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, Final

from supervisor.linux.dbus import BUS, BUS_PATH, OTHER_FORM, PROPERTIES, BusError, Inhibition, Signal, SystemBus
from supervisor.linux.small_files import read_small
from supervisor.sensors.base import OWN_LOCK
from supervisor.sensors.session_agent.saver_calls import InhibitCalls
from supervisor.sensors.session_agent.source import ANSWER_S

GNOME: Final = "org.gnome.SessionManager"
GNOME_PATH: Final = "/org/gnome/SessionManager"
GNOME_IDLE: Final = 8  # the flag of inhibitors that keep the session from idling
KDE: Final = "org.kde.Solid.PowerManagement.PolicyAgent"
KDE_PATH: Final = "/org/kde/Solid/PowerManagement/PolicyAgent"
KDE_SCREEN: Final = 4  # the policy of inhibitions that keep the screen on
POWER: Final = "org.freedesktop.PowerManagement"
POWER_PATH: Final = "/org/freedesktop/PowerManagement/Inhibit"
POWER_INHIBIT: Final = f"{POWER}.Inhibit"
SAVER: Final = "org.freedesktop.ScreenSaver"
SAVER_PATH: Final = "/org/freedesktop/ScreenSaver"
SAVERS: Final = {
    SAVER: SAVER_PATH,
    **{f"org.{who}.ScreenSaver": f"/org/{who}/ScreenSaver" for who in ("xfce", "mate", "cinnamon", "gnome")},
}
# Programs that pass all on to a list that is asked.
FORWARDERS: Final = ("gsd-", "csd-", "msd-", "gnome-shell", "cinnamon", "ksmserver", "kwin_")
GAMEMODE: Final = "com.feralinteractive.GameMode"
GAMEMODE_PATH: Final = "/com/feralinteractive/GameMode"
PLAYING: Final = "gamemode"  # its name as an inhibitor, also for presence.ignore_inhibitors
PLAYERS: Final = "org.mpris.MediaPlayer2.*"
PLAYER_PATH: Final = "/org/mpris/MediaPlayer2"
PLAYER: Final = "org.mpris.MediaPlayer2.Player"
AGAIN_S: Final = 10.0
MAX_INHIBITORS: Final = 16
MAX_ASKED: Final = 128  # each inhibitor of GNOME's is asked for its kind
UNKNOWN: Final = "somebody (the desktop does not say who inhibits)"
UNNAMED: Final = "an unnamed program"
NO_SUCH: Final = tuple(f"{BUS}.Error.Unknown{what}" for what in ("Method", "Object", "Interface"))  # not this desktop's

Holder = tuple[str, str]  # a program, and its reason, which tells two holders apart and goes nowhere
Ask = Callable[[], Coroutine[Any, Any, None]]


class Inhibitors:
    """All of one bus. It must be made before the bus is started.

    address: the bus's.
    changed: called when `held` changes.
    locks: the locks that logind lists.
    """

    def __init__(
        self,
        bus: SystemBus,
        address: str,
        changed: Callable[[], None],
        locks: Callable[[], Awaitable[Sequence[Inhibition]]],
    ) -> None:
        self._bus, self._changed, self._locks = bus, changed, locks
        self._held: dict[str, tuple[str, ...]] = {}
        self._mirrored: set[Holder] = set()  # KDE's, that are logind's to tell
        self._not_screen: Counter[Holder] = Counter()  # KDE's, that were there while nothing kept the screen on
        self._saver_lists = self._saver_forwards = False
        self._kinds_known = False  # KDE says what each of its holders holds
        self._calls = InhibitCalls(bus, address, (*SAVERS, POWER_INHIBIT), self._called)
        self._watching_calls: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._asks: dict[str, Ask] = {
            GNOME: self._ask_gnome, KDE: self._ask_kde, POWER: self._ask_power, GAMEMODE: self._ask_gamemode,
            **{name: self._saver(name) for name in SAVERS},
            PLAYERS: self._ask_players,
        }  # fmt: skip
        for name in self._asks:
            bus.watch(name, lambda _, name=name: self._owner_changed(name))  # type: ignore[misc]
            if name != PLAYERS:
                bus.subscribe(name, POWER_INHIBIT if name == POWER else name, "", lambda _, name=name: self._ask(name))  # type: ignore[misc]
        bus.subscribe(KDE, PROPERTIES, "PropertiesChanged", lambda _: self._ask(KDE), path=KDE_PATH)
        bus.subscribe(PLAYERS, PROPERTIES, "PropertiesChanged", self._player_changed, path=PLAYER_PATH)

    @property
    def held(self) -> tuple[str, ...]:
        """The programs that keep the desktop from idling."""
        names = dict.fromkeys(name for holders in self._held.values() for name in holders)
        return tuple(name for name in names if name != OWN_LOCK)

    async def prove(self) -> None:
        """Ask again those that have no signal; never raises."""
        for name in (*SAVERS, POWER):
            if self._bus.owner(name):
                self._ask(name)
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def stop(self) -> None:
        for timer in self._again.values():
            timer.cancel()
        tasks = [*self._asking.values(), *([self._watching_calls] if self._watching_calls else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- asking

    def _owner_changed(self, name: str) -> None:
        self._ask(name)
        if name in SAVERS:
            self._calls.forget(name)
        if name == POWER:
            self._calls.forget(POWER_INHIBIT)
        if name in (GNOME, KDE, POWER, SAVER):  # they decide whether a media player counts
            self._ask(PLAYERS)

    def _ask(self, name: str) -> None:
        """Ask a service, and once more after the question that is under way."""
        before = self._asking.get(name)
        self._asking[name] = task = asyncio.ensure_future(self._ask_after(name, before))
        task.add_done_callback(lambda done: self._asking.pop(name) if self._asking.get(name) is done else None)

    async def _ask_after(self, name: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
            if self._asking.get(name) is not asyncio.current_task():
                return  # the one after this one asks
        if name in self._again:
            self._again.pop(name).cancel()
        await self._asks[name]()

    def _set(self, name: str, found: Sequence[str]) -> None:
        before = self.held
        self._held[name] = tuple(dict.fromkeys(found))[:MAX_INHIBITORS]
        if self.held != before:
            self._changed()

    def _unanswered(self, name: str, error: BusError | None = None) -> tuple[str, ...]:
        """What to believe of a list without an answer. Without the service, or where it has no such list, it is empty.
        Otherwise it is what was known, or an unknown program, until the list is answered."""
        if not self._bus.owner(name) or (error is not None and error.name in NO_SUCH):
            return ()
        self._again[name] = asyncio.get_running_loop().call_later(AGAIN_S, self._ask, name)
        return self._held.get(name) or (UNKNOWN,)

    async def _call(
        self, name: str, path: str, member: str, *body: Any, interface: str = "", signature: str = "", expect: str = ""
    ) -> Any:
        (answer,) = await self._bus.call(
            name, path, interface or name, member, *body, signature=signature, expect=expect, timeout_s=ANSWER_S
        )
        return answer

    async def _property(self, name: str, path: str, interface: str, which: str) -> Any:
        answer = await self._call(name, path, "Get", interface, which, interface=PROPERTIES, signature="ss", expect="v")
        return answer.value

    # --- session managers of GNOME, MATE and Cinnamon

    async def _ask_gnome(self) -> None:
        found: list[str] = []
        paths: list[str] | None = None
        try:
            paths = await self._call(GNOME, GNOME_PATH, "GetInhibitors", expect="ao")
            for path in paths[:MAX_ASKED]:
                interface = f"{GNOME}.Inhibitor"
                if await self._call(GNOME, path, "GetFlags", interface=interface, expect="u") & GNOME_IDLE:
                    found.append(await self._call(GNOME, path, "GetAppId", interface=interface, expect="s") or UNNAMED)
            if len(paths) > MAX_ASKED:
                found.append(UNKNOWN)
        except BusError as error:
            if paths is not None and error.name and self._bus.owner(GNOME):
                return  # one ended between two calls: the signal of its end is on its way
            found = list(self._unanswered(GNOME, error))
        self._set(GNOME, found)

    # --- KDE

    async def _ask_kde(self) -> None:
        try:
            found: Sequence[str] = await self._kde_holders() if self._bus.owner(KDE) else ()
        except BusError as error:
            found = self._unanswered(KDE, error)
        self._watch_calls()
        self._set(KDE, found)

    async def _kde_holders(self) -> list[str]:
        """Those that keep the screen on, without those of logind's list."""
        try:
            active = await self._property(KDE, KDE_PATH, KDE, "ActiveInhibitions")  # from Plasma 6.5 on, with kinds
            listed = [(str(who), str(why)) for _, who, why, *_ in active]
            screen = [holder for holder, (what, *_) in zip(listed, active, strict=True) if "idle" in str(what).split(":")]
            self._kinds_known = True
            await self._find_mirrored(listed)
            return [name or UNNAMED for name, _ in _without(screen, self._mirrored)]
        except (TypeError, ValueError) as error:
            raise BusError(f"{KDE} lists its inhibitions in another form", OTHER_FORM) from error
        except BusError as error:
            if not error.name or error.name == OTHER_FORM:
                raise
        self._kinds_known = False
        inhibited = await self._call(KDE, KDE_PATH, "HasInhibition", KDE_SCREEN, signature="u", expect="b")
        try:
            listed = [(name, why) for name, why in await self._call(KDE, KDE_PATH, "ListInhibitions", expect="a(ss)")]
        except BusError as error:
            if inhibited:  # that there is one is known
                raise BusError(str(error)) from error
            listed = []
        await self._find_mirrored(listed)
        if not inhibited:
            self._not_screen = Counter(listed)
            return []
        own = _without(listed, self._mirrored)
        asleep = self._not_screen | Counter(self._calls.held(POWER_INHIBIT))  # KDE answers there for sleep alone
        counted = list((Counter(own) - asleep).elements())
        self._not_screen &= Counter(listed)
        if not counted and not self._mirrored:
            counted = own or [("", "")]  # one of these keeps the screen on after all
        return [name or UNNAMED for name, _ in counted]

    async def _find_mirrored(self, listed: Sequence[Holder]) -> None:
        """Which holders are logind's to tell, as long as they are listed: KDE drops its mirror a moment after the lock."""
        logind = self._mirrored
        if listed:
            with contextlib.suppress(BusError):
                logind = logind | {(lock.who, lock.why) for lock in await self._locks()}
        self._mirrored = {holder for holder in listed if holder in logind or holder[0] == OWN_LOCK}

    # --- power managers

    async def _ask_power(self) -> None:
        """KDE's agent answers here for sleep alone, and has told of the screen already."""
        found: Sequence[str] = ()
        if self._bus.owner(POWER) and not self._bus.owner(KDE):
            try:
                if await self._call(POWER, POWER_PATH, "HasInhibit", interface=POWER_INHIBIT, expect="b"):
                    found = (UNKNOWN,)
                    found = await self._call(POWER, POWER_PATH, "GetInhibitors", interface=POWER_INHIBIT, expect="as")
                    found = [name or UNNAMED for name in found] or [UNNAMED]
            except BusError as error:
                found = found or self._unanswered(POWER, error)
        self._watch_calls()
        self._set(POWER, found)

    # --- screen savers

    def _saver(self, name: str) -> Ask:
        async def ask() -> None:
            found: Sequence[str] = ()
            lists = False
            if self._bus.owner(name):
                try:
                    listed = await self._call(name, SAVERS[name], "GetInhibitors", expect="as")
                    found = [_holder(text) for text in listed]
                    lists = bool(found)  # an empty list proves nothing: some lists are always empty
                except BusError as error:
                    found = () if error.name else self._unanswered(name)
            if name == SAVER:
                before = self._saver_lists, self._saver_forwards
                self._saver_lists, self._saver_forwards = lists, await self._forwards()
                if before != (self._saver_lists, self._saver_forwards):
                    self._ask(PLAYERS)
                self._watch_calls()
            self._set(name, found)

        return ask

    async def _forwards(self) -> bool:
        """Whether the screen saver passes each holder on to a list that is asked too."""
        if not self._bus.owner(SAVER):
            return False
        try:
            (pid,) = await self._bus.call(
                BUS, BUS_PATH, BUS, "GetConnectionUnixProcessID", SAVER, signature="s", expect="u", timeout_s=ANSWER_S
            )
            return read_small(f"/proc/{pid}/comm").startswith(FORWARDERS)
        except BusError:
            return False

    @property
    def _saver_is_silent(self) -> bool:
        """Whether the screen saver's holders are in no list."""
        listed = self._saver_lists or self._saver_forwards or self._bus.owner(KDE)
        return bool(self._bus.owner(SAVER)) and not listed

    def _watch_calls(self) -> None:
        """Where somebody lists nobody, has no signal (Xfce's power manager), or does not tell screen from sleep (KDE)."""
        wanted = self._saver_is_silent or bool(self._bus.owner(POWER) and not (self._bus.owner(KDE) and self._kinds_known))
        if wanted and self._watching_calls is None:
            self._watching_calls = asyncio.ensure_future(self._calls.run())
        elif not wanted and self._watching_calls is not None:
            self._watching_calls.cancel()
            self._watching_calls = None

    def _called(self, interface: str) -> None:
        if interface == POWER_INHIBIT:
            self._ask(KDE if self._bus.owner(KDE) else POWER)
        else:
            found = [name or UNNAMED for at in SAVERS for name, _ in self._calls.held(at)]
            self._set("calls", found if self._saver_is_silent else ())

    # --- gamemode

    async def _ask_gamemode(self) -> None:
        playing: tuple[str, ...] = ()
        if self._bus.owner(GAMEMODE):
            try:
                games = (await self._bus.properties(GAMEMODE, GAMEMODE_PATH, GAMEMODE)).get("ClientCount")
            except BusError as error:
                games = None
                if not error.name:  # probably busy with its scripts, after which no signal comes
                    self._unanswered(GAMEMODE)
            playing = () if games == 0 and type(games) is int else (PLAYING,)  # without a number it is not idle
        self._set(GAMEMODE, playing)

    # --- media players

    @property
    def _all_listed(self) -> bool:
        """Whether every way to keep this desktop's screen on ends in a list that was asked."""
        if self._bus.owner(KDE):
            return True
        if self._bus.owner(SAVER) and not (self._saver_lists or self._saver_forwards):
            return False
        return bool(self._bus.owner(GNOME) or self._bus.owner(POWER) or self._saver_lists)

    def _player_changed(self, signal: Signal) -> None:
        if len(signal.body) == 3 and signal.body[0] == PLAYER and "PlaybackStatus" in [*signal.body[1], *signal.body[2]]:
            self._ask(PLAYERS)

    async def _ask_players(self) -> None:
        found: list[str] = []
        hung = False
        for name in [] if self._all_listed else self._bus.names(PLAYERS)[:MAX_INHIBITORS]:
            try:
                playing = await self._property(name, PLAYER_PATH, PLAYER, "PlaybackStatus") == "Playing"
            except BusError as error:
                playing = not error.name and bool(self._bus.owner(name))  # it hangs, with its film on the screen perhaps
                hung = hung or playing
            found += [name.removeprefix(PLAYERS[:-1]).partition(".")[0]] if playing else []
        if hung:
            self._again[PLAYERS] = asyncio.get_running_loop().call_later(AGAIN_S, self._ask, PLAYERS)
        self._set(PLAYERS, found)


def _without(listed: Sequence[Holder], others: Collection[Holder]) -> list[Holder]:
    return [holder for holder in listed if holder not in others]


def _holder(text: str) -> str:
    """The program in a screen saver's list; some put its reason behind it."""
    if "=" not in text:
        return text or UNNAMED
    named = re.match(r'\s*Application="([^"]*)"', text)
    return (named[1] if named else "") or UNNAMED
