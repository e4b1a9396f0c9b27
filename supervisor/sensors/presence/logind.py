"""Sessions by logind: who is there, who came, who left, who keeps the screen on; and whether the machine is going down.

Driven by signals, which only wake: what counts is the look that follows, at everything that logind knows. Besides, one
short question in two thirds of `presence.max_age_sec` shows that logind still answers, and finds what it tells nobody
(the lid). A graphical session in the foreground is a person, unless it is proven that nobody is there: by the session
agent's report, or by both of IdleHint and LockedHint, which are mere hints alone (T3, T4). Where they disagree, the
nearer sign counts. Terminals of a session are the terminals sensor's; here a login counts, and what logind knows
of its terminal. What logind does not say, in time and in the form expected, is an error, which blocks (R12).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from states.observation import NEVER
from states.words import elapsed
from supervisor.config.schema import PresenceSettings
from supervisor.linux.bounded import is_set
from supervisor.linux.clock import Clock
from supervisor.linux.dbus import (
    LOGIN1,
    LOGIN1_MANAGER,
    LOGIN1_PATH,
    PROPERTIES,
    BusError,
    Inhibition,
    Lock,
    Signal,
    SystemBus,
    inhibit,
    inhibitions,
)
from supervisor.sensors.base import Away, Presence, Quality, Wake
from supervisor.sensors.presence.agent_reports import Proof
from supervisor.sensors.presence.logind_session import session_properties

UPOWER: Final = "org.freedesktop.UPower"
UPOWER_PATH: Final = "/org/freedesktop/UPower"  # the lid and the mains; what lies below are batteries and their charge
TERMINAL_TYPES: Final = ("tty", "unspecified", "web")  # every other type is graphical, also one we do not know
NOT_PEOPLE: Final = ("greeter", "lock-screen", "none", "background", "manager")  # and what begins like the last two
DELAYS: Final = {"sleep": "PreparingForSleep", "shutdown": "PreparingForShutdown"}
GOING: Final = {"sleep": "the machine is going to sleep", "shutdown": "the machine is shutting down"}
LID_CLOSED: Final = "the lid is closed"
DENIES_S: Final = 10.0  # two sources of one desktop may differ by so much: the kernel's 8-s steps, a report on its way
START_SIGN: Final = "the node began to watch the sessions; who left before is not known"
BACK_SIGN: Final = "logind could not be asked until just now; who left meanwhile is not known"
NO_PROOF: Final = Proof()
FIRST_LOOK_S: Final = 2.0
RETRY_S: Final = 2.0


def _boot_offset_s() -> float:
    """CLOCK_BOOTTIME minus CLOCK_MONOTONIC: the time spent suspended. It is added to stamps of logind's, so that one
    from before a suspend comes out later than it was, never earlier."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


@dataclass(frozen=True, slots=True)
class Session:
    """A session as logind sees it. Times are seconds of CLOCK_BOOTTIME."""

    id: str
    path: str
    uid: int
    user: str
    seat: str
    type: str
    kind: str  # logind's Class
    state: str
    active: bool
    remote: bool
    host: str
    tty: str
    idle: bool
    locked: bool
    created_s: float
    idle_since_s: float

    @classmethod
    def read(cls, path: str, known: dict[str, Any], now_s: float, offset_s: float) -> Session:
        """From logind's properties.

        Raises:
            BusError: one is missing or of another type.
        """
        try:
            text = {n: _typed(known[n], str) for n in ("Id", "Name", "Type", "Class", "State", "RemoteHost", "TTY")}
            flag = {n: _typed(known[n], bool) for n in ("Active", "Remote", "IdleHint", "LockedHint")}
            stamp = {n: _typed(known[n], int) for n in ("TimestampMonotonic", "IdleSinceHintMonotonic")}
            uid, seat = _typed(known["User"][0], int), _typed(known["Seat"][0], str)
        except (KeyError, TypeError, IndexError) as error:
            raise BusError(f"logind describes a session in a way that this node does not know ({error})") from error

        def boot_s(usec: int) -> float:
            return min(usec / 1e6 + offset_s, now_s) if usec else NEVER

        return cls(
            id=text["Id"], path=path, uid=uid, user=text["Name"], seat=seat, type=text["Type"], kind=text["Class"],
            state=text["State"], active=flag["Active"], remote=flag["Remote"], host=text["RemoteHost"],
            tty=text["TTY"], idle=flag["IdleHint"], locked=flag["LockedHint"],
            created_s=boot_s(stamp["TimestampMonotonic"]), idle_since_s=boot_s(stamp["IdleSinceHintMonotonic"]),
        )

    @property
    def is_person(self) -> bool:
        """Its class is a person's; a class that we do not know is (T9)."""
        return self.kind not in NOT_PEOPLE and not self.kind.startswith(("background-", "manager-"))

    @property
    def counts(self) -> bool:
        """A person's session that has not been left (tmux keeps one "closing" for good, T9)."""
        return self.is_person and self.state != "closing"

    @property
    def graphical(self) -> bool:
        """x11, wayland, mir, and whatever is no terminal."""
        return self.type not in TERMINAL_TYPES

    @property
    def proven_away(self) -> bool:
        """IdleHint counts only beside a second source, which here is LockedHint; both must be there, and a time."""
        return self.idle and self.locked and math.isfinite(self.idle_since_s)

    @property
    def place(self) -> str:
        """Where the person is: a seat, a terminal, another machine."""
        if self.host or self.remote:
            return f"from {_clean(self.host) or 'afar'}"
        return f"on {self.tty or self.seat}" if self.tty or self.seat else "without a seat"

    @property
    def name(self) -> str:
        """The session, in words."""
        return f"{'graphical ' if self.graphical else ''}session {self.id} of {self.user}"


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one session says: somebody is there (`present`), or when somebody was; `note` explains a session that says
    neither."""

    present: str = ""
    last_sign_at_s: float = NEVER
    sign: str = ""
    note: str = ""
    quality: Quality = Quality.EVENT


def judge(session: Session, proof: Proof = NO_PROOF, *, strict: bool = False) -> Verdict:
    """Whether the session shows a person (R9). `proof`: what its agent says of it. `strict`: an active graphical session
    shows one, whatever is said of it."""
    if not session.is_person:
        return Verdict(note=f"not a person: class {session.kind}")
    if session.state == "closing":
        return Verdict(note="left, not counted: state closing")
    # IdleSinceHint is when the hint changed, either way, or the terminal's last use: a sign in every case.
    last = Verdict(last_sign_at_s=session.created_s, sign=f"{session.user} logged in {session.place}")
    if session.idle_since_s > session.created_s:
        sign = f"user active {session.place}"
        last = Verdict(last_sign_at_s=session.idle_since_s, sign=sign, quality=Quality.INFERRED)
    if proof.source and proof.idle_since_s > last.last_sign_at_s:
        last = Verdict(last_sign_at_s=proof.idle_since_s, sign=f"user active {session.place} ({proof.source})")
    if proof.active:
        return Verdict(present=f"{session.name} active {session.place} ({proof.source})")
    away = bool(proof.source) or session.proven_away
    if not session.graphical or not session.active or (away and not strict):
        return last
    if away:
        said = "nobody there by its agent" if proof.source else "idle and locked"
        return Verdict(present=f"{session.name} active {session.place} ({said}, but presence.strict is true)")
    hint = ""
    if session.locked:
        hint = " (locked, but not idle by its own word)"
    elif session.idle:
        hint = " (idle by its own word, but not locked)"
    return Verdict(present=f"{session.name} {session.place}, idle time unknown{hint}: {proof.why}", quality=Quality.INFERRED)


def away(session: Session, proof: Proof, now_s: float) -> Iterator[Away]:
    """Who says that nobody is at this desktop, and what the other of both, logind and the session's agent, says of that."""
    if not session.counts or not session.graphical:
        return
    about = f"nobody at {session.name}"
    touched_s = now_s if proof.active else proof.idle_since_s
    if session.idle and math.isfinite(session.idle_since_s):
        denied = bool(proof.source) and touched_s > session.idle_since_s + DENIES_S
        says = (f"session agent ({proof.source})", f"user active {session.place}", touched_s) if denied else ("", "", NEVER)
        yield Away("logind", about, session.idle_since_s, *says)
    if proof.source and not proof.active:
        denied = not session.idle and session.idle_since_s > proof.idle_since_s + DENIES_S
        says = ("logind", f"user active {session.place}", session.idle_since_s) if denied else ("", "", NEVER)
        yield Away(f"session agent ({proof.source})", about, proof.idle_since_s, *says)


def lid_reason(manager: dict[str, Any]) -> str:
    """A closed lid is a machine on its way into a bag (T25), unless logind has been told to ignore it; else empty."""
    if manager.get("LidClosed") is not True:
        return ""
    action = manager.get("HandleLidSwitch")
    if manager.get("Docked"):
        action = manager.get("HandleLidSwitchDocked")
    elif manager.get("OnExternalPower"):
        action = manager.get("HandleLidSwitchExternalPower") or action
    return "" if action in ("ignore", "lock") else LID_CLOSED


def _clean(text: str) -> str:
    """A name that somebody else chose, fit for one line."""
    return "".join(c if c.isprintable() else " " for c in text)[:60].strip()


class Sessions:
    """The sensor. It shares `bus` with others, so it starts it but does not stop it; made before the bus is started.

    `delay_locks`: hold logind's delay locks, so that a task can be stopped in order before the machine sleeps or shuts
    down (T26); for the daemon. `start_is_sign`: who left before the start is not known, so the start counts as a sign;
    a look that lasts a moment only may leave it out. `proof`: what the agent of a session (its id, its owner's uid) says
    of it at a moment.
    """

    name = "sessions"

    def __init__(
        self,
        bus: SystemBus,
        clock: Clock,
        settings: PresenceSettings,
        *,
        who: str = "rae-node",
        delay_locks: bool = True,
        start_is_sign: bool = True,
        proof: Callable[[str, int, float], Proof] = lambda _session, _uid, _now_s: NO_PROOF,
        boot_offset_s: Callable[[], float] = _boot_offset_s,
    ) -> None:
        self._bus, self._clock, self._settings, self._who = bus, clock, settings, who
        self._boot_offset_s, self._start_is_sign, self._proof = boot_offset_s, start_is_sign, proof
        self._wake: Wake = lambda: None
        self._task: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()
        self._looked = asyncio.Event()
        self._error = "logind has not been asked yet"
        self._answered_at_s = NEVER
        self._answered_before = False
        self._sessions: dict[str, Session] = {}
        self._manager: dict[str, Any] = {}
        self._blockers: list[Inhibition] = []
        self._blocked_since: dict[Inhibition, float] = {}  # first seen then, so held at least that long
        self._event = (NEVER, "")  # the last sign that was an event, and what it was
        self._delays = _DelayLocks(bus, who) if delay_locks else None
        self._preparing = dict.fromkeys(DELAYS, False)
        self._prepared = 0  # how many signals told of it: a property read before the last of them is old
        bus.watch(LOGIN1, self._owner_changed)
        bus.subscribe(LOGIN1, LOGIN1_MANAGER, "", self._manager_signal)
        bus.subscribe(LOGIN1, PROPERTIES, "PropertiesChanged", self._properties_changed)
        bus.subscribe(UPOWER, PROPERTIES, "PropertiesChanged", self._power_changed)

    # What others read

    @property
    def going_down(self) -> str:
        """Why the machine is about to sleep or shut down, in words; empty when it is not, as far as is known."""
        for kind, preparing in self._preparing.items():
            if preparing:
                return GOING[kind]
        return lid_reason(self._manager)

    @property
    def delay_error(self) -> str:
        """Why no delay lock is held, so that a task may be cut short by sleep; empty when all is well."""
        return self._delays.error if self._delays else ""

    @property
    def delay_max_s(self) -> float | None:
        """How long a delay lock holds sleep or shutdown up, in seconds (5 by default, T26): the task must be stopped
        within it. None: not known."""
        usec = self._manager.get("InhibitDelayMaxUSec")
        return usec / 1e6 if type(usec) is int else None

    def release_delay(self) -> None:
        """The task is stopped: let the machine sleep or shut down. Outside of that it does nothing; the locks are taken
        again by themselves on resume."""
        if self._delays:
            self._delays.release([kind for kind, preparing in self._preparing.items() if preparing])

    def owner(self, session: str) -> tuple[int, str] | None:
        """uid and name of a session's owner; None: logind does not list it."""
        return next(((s.uid, s.user) for s in self._sessions.values() if s.id == session), None)

    def name_of(self, uid: int) -> str | None:
        """The name of a user with a session; None: logind lists none of that user's."""
        return next((s.user for s in self._sessions.values() if s.uid == uid), None)

    def latest(self, now_s: float) -> Presence:
        """What is known now."""
        verdicts = [self._judge(session, now_s) for session in self._sessions.values()]
        signs = [(*self._event, Quality.EVENT), *((v.last_sign_at_s, v.sign, v.quality) for v in verdicts)]
        at_s, sign, quality = max(signs)
        present = [(v.present, v.quality) for v in verdicts if v.present]
        present += [(self._blocked_by(b), Quality.EVENT) for b in self._blockers]
        silent_s = now_s - self._answered_at_s
        error = self._error
        if not error and silent_s > self._settings.max_age_sec:
            error = f"logind has not been heard of for {silent_s:.0f} s (presence.max_age_sec)"
        return Presence(
            source="logind",
            read_at_s=self._answered_at_s,
            last_sign_at_s=min(at_s, now_s),
            sign=sign,
            present=present[0][0] if present else "",
            error=error,
            quality=present[0][1] if present else quality,
            away=() if error else tuple(self._away(now_s)),
        )

    def _away(self, now_s: float) -> Iterator[Away]:
        for session in self._sessions.values():
            yield from away(session, self._proof(session.id, session.uid, now_s), now_s)

    @property
    def known(self) -> tuple[Session, ...]:
        """The sessions as of the last look; for the doctor's cross-check."""
        return tuple(self._sessions.values())

    def locks(self) -> list[str]:
        """Who keeps the screen on by a lock of logind's, counted or excepted, with its age, one line each, for people."""
        now_s, lines = self._clock.now_s(), []
        for lock, since_s in self._blocked_since.items():
            age = elapsed(max(0.0, now_s - since_s))
            how = "presence.ignore_inhibitors" if lock in self._blockers else "not counted: presence.ignore_inhibitors"
            lines.append(f"{self._blocked_by(lock)}, for {age} at least ({how})")
        return lines

    def describe(self) -> list[str]:
        """Each session, each lock that keeps the screen on, with the verdict, one line each, for people."""
        now_s = self._clock.now_s()
        lines = [f"logind: {self._error}"] if self._error else []
        for session in self._sessions.values():
            verdict = self._judge(session, now_s)
            said = verdict.present or verdict.note
            if not said:
                said = f"{verdict.sign}, {max(0.0, now_s - verdict.last_sign_at_s):.0f} s ago"
            lines.append(f"session {session.id} ({session.type}, {session.kind}, {session.state}): {said}")
        lines += self.locks()
        if self._event[1]:
            lines.append(f"last event: {self._event[1]}, {max(0.0, now_s - self._event[0]):.0f} s ago")
        if self.going_down:
            lines.append(self.going_down)
        if self.delay_error:
            lines.append(self.delay_error)
        return lines or ["no session"]

    # Life

    async def start(self, wake: Wake) -> None:
        """Begin to watch; returns after the first look, or when it has taken two seconds."""
        self._wake = wake
        if self._start_is_sign:
            self._note(START_SIGN)
        await self._bus.start()
        self._task = asyncio.create_task(self._run())
        await is_set(self._looked, FIRST_LOOK_S)

    async def stop(self) -> None:
        """Let go of the delay locks and of the watch; the bus is its owner's to stop."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._delays:
            await self._delays.stop()
        self._error = "the sessions are no longer watched"

    async def _run(self) -> None:
        interval_s = self._settings.max_age_sec * 2 / 3
        self._look_now.set()
        while True:
            await is_set(self._look_now, min(interval_s, RETRY_S) if self._error else interval_s)
            before = self._told()
            try:
                if self._error or self._look_now.is_set() or await self._ask_manager() != self._manager:
                    self._look_now.clear()
                    await self._look()
            except BusError as error:
                self._error = self._bus.error or f"{error}: see systemctl status systemd-logind"
            except Exception as error:  # noqa: BLE001 - a fault of ours is one more way not to know (R12), and tried again
                self._error = f"sessions cannot be read: {type(error).__name__}: {error}"
            self._looked.set()
            if self._told() != before:
                self._wake()

    def _told(self) -> tuple[object, ...]:
        return (self._error, self._sessions, self._blockers, self._event, self.going_down)

    # Looking

    async def _ask_manager(self) -> dict[str, Any]:
        prepared = self._prepared
        manager = await self._bus.properties(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER)
        self._answered_at_s = self._clock.now_s()
        if prepared == self._prepared:
            for kind, name in DELAYS.items():
                self._set_preparing(kind, manager.get(name) is True)
        if self._delays:
            self._delays.take([kind for kind, preparing in self._preparing.items() if not preparing])
        return manager

    async def _look(self) -> None:
        """Read everything that logind knows."""
        manager = await self._ask_manager()
        (listed,) = await self._bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListSessions", expect="a(susso)")
        seen: dict[str, Session] = {}
        for *_, path in listed:
            known = await session_properties(self._bus, path)
            if known is None:
                continue  # it ended between the two questions
            seen[path] = Session.read(path, known, self._clock.now_s(), self._boot_offset_s())
        held = []
        if "idle" in str(manager.get("BlockInhibited", "idle")).split(":"):
            held = [lock for lock in await inhibitions(self._bus) if self._is_others(lock)]
        blockers = [lock for lock in held if lock.who not in self._settings.ignore_inhibitors]
        self._manager = manager
        if self._error and self._answered_before and self._start_is_sign:
            self._note(BACK_SIGN)
        self._compare(seen, blockers)
        self._sessions, self._blockers, self._error, self._answered_before = seen, blockers, "", True
        self._answered_at_s = self._clock.now_s()
        self._blocked_since = {lock: self._blocked_since.get(lock, self._answered_at_s) for lock in held}

    def _is_others(self, lock: Inhibition) -> bool:
        """Somebody else's block lock on idle (T7): a film, a talk, a call. Ours is none."""
        ours = lock.pid == os.getpid() or lock.who == self._who
        return lock.blocks and "idle" in lock.kinds and not ours

    def _compare(self, seen: dict[str, Session], blockers: list[Inhibition]) -> None:
        """Note the signs that lie in the difference between two looks."""
        now_s = self._clock.now_s()
        for path, session in self._sessions.items():
            now = seen.get(path)
            if session.counts and (now is None or not now.counts):
                self._note(f"{session.user} logged out {session.place}")
            elif now and not now.proven_away and self._left(session, now, now_s):
                self._note(f"{session.name} left the foreground {session.place}")
        for path, session in seen.items():
            new = session.counts and session.graphical and path not in self._sessions
            if new and not session.idle and not session.active:
                self._note(f"{session.name} found in the background")  # since when is not known
        if self._blockers and not blockers:
            self._note(f"{self._blocked_by(self._blockers[0])} until just now")

    def _left(self, before: Session, now: Session, now_s: float) -> bool:
        return bool(self._judge(before, now_s).present) and not self._judge(now, now_s).present

    def _judge(self, session: Session, now_s: float) -> Verdict:
        return judge(session, self._proof(session.id, session.uid, now_s), strict=self._settings.strict)

    def _blocked_by(self, lock: Inhibition) -> str:
        """The holder, and not its reason: that may be the title of what is being watched (R16)."""
        users = {session.uid: session.user for session in self._sessions.values()}
        return f"idle blocked by {_clean(lock.who)} of {users.get(lock.uid, f'uid {lock.uid}')} (pid {lock.pid})"

    def _note(self, sign: str) -> None:
        self._event = (self._clock.now_s(), sign)

    # What the bus tells

    def _owner_changed(self, owner: str) -> None:
        if self._delays:
            self._delays.renew()
        if not owner:
            self._error = self._bus.error or "logind is not running: see systemctl status systemd-logind"
            self._wake()
        self._look_now.set()

    def _manager_signal(self, signal: Signal) -> None:
        for kind in DELAYS:
            if signal.member == f"PrepareFor{kind.capitalize()}" and signal.body and type(signal.body[0]) is bool:
                self._prepared += 1
                self._set_preparing(kind, signal.body[0])
                self._wake()
        self._look_now.set()

    def _set_preparing(self, kind: str, preparing: bool) -> None:
        ended = self._preparing[kind] and not preparing
        self._preparing[kind] = preparing
        if ended and self._delays:
            self._delays.take([kind])  # on resume, before anything else (T26)

    def _power_changed(self, signal: Signal) -> None:
        if signal.path == UPOWER_PATH:
            self._look_now.set()

    def _properties_changed(self, signal: Signal) -> None:
        session = self._sessions.get(signal.path)
        if session and session.counts and session.graphical and len(signal.body) > 1:
            for hint in ("IdleHint", "LockedHint"):  # too short for a look to see it, it is a sign all the same
                if (value := signal.body[1].get(hint)) is not None and value.value is False:
                    self._note(f"user active {session.place}")
                    self._wake()
        self._look_now.set()


class _DelayLocks:
    """The delay locks, one a kind (T24), held all the time; taken in the background, one at a time."""

    def __init__(self, bus: SystemBus, who: str) -> None:
        self._bus, self._who = bus, who
        self._held: dict[str, Lock] = {}
        self._old: dict[str, Lock] = {}  # of a logind that is gone; its successor may have taken them over
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, str] = {}

    @property
    def error(self) -> str:
        """Why a lock is not held; empty when none was refused."""
        return next(iter(self._refused.values()), "")

    def take(self, kinds: list[str]) -> None:
        for kind in kinds:
            if kind not in self._held and kind not in self._taking and self._bus.owner(LOGIN1):
                self._taking[kind] = asyncio.get_running_loop().create_task(self._take(kind))

    async def _take(self, kind: str) -> None:
        try:
            lock = await inhibit(self._bus, kind, self._who, "stops its task in order first", "delay")
        except BusError as error:
            self._refused[kind] = f"no delay lock on {kind}, a task may be cut short by it: {error}"
        else:
            self._refused.pop(kind, None)
            self._held[kind] = lock
            self._close(self._old, kind)
        finally:
            self._taking.pop(kind, None)

    def release(self, kinds: list[str]) -> None:
        for kind in kinds:
            self._close(self._held, kind)
            self._close(self._old, kind)

    def renew(self) -> None:
        """logind is another one: `take` takes new locks, and only then the old ones are given up."""
        for task in self._taking.values():
            task.cancel()
        for kind in list(self._held):
            self._close(self._old, kind)
            self._old[kind] = self._held.pop(kind)

    async def stop(self) -> None:
        tasks = list(self._taking.values())
        self.renew()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.release(list(DELAYS))

    @staticmethod
    def _close(locks: dict[str, Lock], kind: str) -> None:
        if lock := locks.pop(kind, None):
            lock.close()
