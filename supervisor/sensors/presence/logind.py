"""Sessions by logind: who is there, came, left or keeps the screen on; and whether the machine is going down.

Signals only wake; the look that follows counts, and reads everything that logind knows. Also, one short question in two
thirds of `max_age_s` shows that logind still answers, and finds what no signal reports (the lid). An answer that
is missing, late or of another form is an error, which blocks. `session_policy.py` says what a session means.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.bounded import in_thread, wait_for_event, within
from supervisor.linux.clock import Clock, suspended_s
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
from supervisor.linux.proc import Name, name_of
from supervisor.linux.small_files import read_small
from supervisor.linux.text import one_line
from supervisor.sensors.base import OWN_LOCK, RESUME_SIGN, Presence, PresenceSensor, Quality, Wake, inhibitor_line
from supervisor.sensors.presence.agent_reports import Proof, SessionOwners
from supervisor.sensors.presence.connections import Connections
from supervisor.sensors.presence.logind_session import session_properties
from supervisor.sensors.presence.session_policy import (
    NO_PROOF,
    NO_WAY,
    Session,
    SessionSign,
    Way,
    away,
    exception,
    judge,
    lid_reason,
)

UPOWER: Final = "org.freedesktop.UPower"
UPOWER_PATH: Final = "/org/freedesktop/UPower"  # the lid and the mains; the paths below it are batteries
DELAYS: Final = {"sleep": "PreparingForSleep", "shutdown": "PreparingForShutdown"}
GOING: Final = {"sleep": "the machine is going to sleep", "shutdown": "the machine is shutting down"}
SIGNS: Final = {"IdleHint": False, "LockedHint": False, "Active": True}  # properties of a session that change to a sign
START_SIGN: Final = "the node began to watch the sessions; who left before is not known"
LID_SIGN: Final = "the lid was opened"
LID_AGAIN_S: Final = 1.0  # logind reads the lid's switch too, and may be later than we are
BACK_SIGN: Final = "logind could not be asked until just now; who left meanwhile is not known"
FIRST_LOOK_S: Final = 2.0
PROC: Final = Path("/proc")
CGROUPS: Final = "/sys/fs/cgroup"
DECIDE_S: Final = 1.0  # a remote login starts its program within this time
UNDECIDED: Final = "presence.ignore_commands, until it has started a program"
RETRY_S: Final = 2.0


def _programs_beside(leader: Name) -> list[Name]:
    """The programs in the session's control group that are not the leader's own."""
    if "/session-" not in leader.cgroup:
        return []
    pids = read_small(f"{CGROUPS}{leader.cgroup}/cgroup.procs").split()
    return [name for pid in pids if not (name := name_of(PROC, int(pid))).gone and name.comm != leader.comm]


def _uids(names: list[str]) -> set[int]:
    found = set()
    for name in names:
        with contextlib.suppress(KeyError, OSError):  # who does not exist does not come
            found.add(pwd.getpwnam(name).pw_uid)
    return found


class Sessions(PresenceSensor):
    """The sensor. It must be made before the shared bus is started; `start` does that, and the bus's owner stops it.

    delay_locks: hold logind's delay locks, so that a task is stopped in order before the machine sleeps or shuts down.
    start_is_sign: count the start as a sign: who left before is not known. A single look may leave it out.
    boot_offset_s: CLOCK_BOOTTIME minus CLOCK_MONOTONIC. With it, logind's stamps from before a suspend come out later than they
        were, never earlier.
    proof: what the agent of a session (its id, its owner's uid) says of it at a moment.
    sees_terminal: whether somebody watches a terminal, such as "pts/3".
    connections: the machine's connections, for remote logins without a terminal.
    """

    name = "logind"

    def __init__(
        self,
        bus: SystemBus,
        clock: Clock,
        settings: PresenceSettings,
        owners: SessionOwners | None = None,
        *,
        max_age_s: float,
        delay_locks: bool = True,
        start_is_sign: bool = True,
        proof: Callable[[str, int, float], Proof] = lambda _session, _uid, _now_s: NO_PROOF,
        sees_terminal: Callable[[str], bool] = lambda _terminal: True,
        connections: Connections | None = None,
        boot_offset_s: Callable[[], float] = suspended_s,
    ) -> None:
        self._bus, self._clock, self._settings, self._owners = bus, clock, settings, owners or SessionOwners()
        self._max_age_s = max_age_s
        self._boot_offset_s, self._start_is_sign, self._proof = boot_offset_s, start_is_sign, proof
        self._sees_terminal, self._connections = sees_terminal, connections or Connections()
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
        self._event = (NEVER, "", Quality.EVENT)  # the last sign that was an event
        self._delays = _DelayLocks(bus, wanted=delay_locks)
        self._preparing = dict.fromkeys(DELAYS, False)
        self._announced_s = dict.fromkeys(DELAYS, NEVER)  # when logind said so
        self._prepared = 0  # signals about it so far: a property read before the last of them is old
        bus.watch(LOGIN1, self._owner_changed)
        bus.subscribe(LOGIN1, LOGIN1_MANAGER, "", self._manager_signal)
        bus.subscribe(LOGIN1, PROPERTIES, "PropertiesChanged", self._properties_changed)
        bus.subscribe(UPOWER, PROPERTIES, "PropertiesChanged", self._power_changed)

    # --- what others read

    @property
    def going_down(self) -> str:
        """Why the machine is about to sleep or shut down; empty when it is not, as far as is known."""
        for kind, preparing in self._preparing.items():
            if preparing:
                return GOING[kind]
        return lid_reason(self._manager)

    @property
    def announced_s(self) -> float | None:
        """When logind announced the sleep or shutdown, in seconds of CLOCK_BOOTTIME: its delay counts from then. None: it has
        announced nothing."""
        return min((self._announced_s[kind] for kind, preparing in self._preparing.items() if preparing), default=None)

    @property
    def delay_error(self) -> str:
        """Why no delay lock is held, so that a task may be cut short by sleep; empty when all is well."""
        return self._delays.error

    @property
    def delay_max_s(self) -> float | None:
        """How long a delay lock holds up sleep or shutdown, in seconds (logind's default is 5); the task must be stopped
        in this time. None: not known."""
        usec = self._manager.get("InhibitDelayMaxUSec")
        return usec / 1e6 if type(usec) is int else None

    def release_delay(self) -> None:
        """The task is stopped: let the machine sleep or shut down. Does nothing while the machine is not going down. On resume
        the locks are taken again."""
        self._delays.release([kind for kind, preparing in self._preparing.items() if preparing])

    def latest(self, now_s: float) -> Presence:
        seen = [self._judge(session, now_s) for session in self._sessions.values()]
        signs = [self._event, *((s.last_sign_at_s, s.sign, s.quality) for s in seen)]
        at_s, sign, quality = max(signs)
        present = [(s.present, s.quality) for s in seen if s.present]
        present += [(self._blocked_by(b), Quality.EVENT) for b in self._blockers]
        silent_s = now_s - self._answered_at_s
        error = self._error
        if not error and silent_s > self._max_age_s:
            error = f"logind has not answered for {silent_s:.0f} s"
        away_from = [] if error else [away(s, self._proof(s.id, s.uid, now_s), now_s) for s in self._sessions.values()]
        return Presence(
            source=self.name,
            read_at_s=self._answered_at_s,
            last_sign_at_s=min(at_s, now_s),
            sign=sign,
            present=present[0][0] if present else "",
            error=error,
            quality=present[0][1] if present else quality,
            away=tuple(absence for absences in away_from for absence in absences),
        )

    def at_desk(self, uid: int) -> str:
        """The name of the user with this uid, if an active session of theirs is at a seat of this machine; else empty."""
        sessions = (s for s in self._sessions.values() if s.uid == uid and s.active and s.seat and not s.remote)
        return next((s.user for s in sessions if s.kind == "user"), "")

    @property
    def known(self) -> tuple[Session, ...]:
        """The sessions as of the last look; for the doctor's cross-check."""
        return tuple(self._sessions.values())

    def details(self) -> dict[str, list[str]]:
        """Each session with what it says; each lock that keeps the screen on, with its age, and whether it counts."""
        now_s, lines = self._clock.now_s(), []
        for session in self._sessions.values():
            seen = self._judge(session, now_s)
            text = seen.present or seen.note or f"{seen.sign}, {max(0.0, now_s - seen.last_sign_at_s):.0f} s ago"
            lines.append(f"session {session.id} ({session.type}, {session.kind}, {session.state}): {text}")
        if self._event[1]:
            lines.append(f"last event: {self._event[1]}, {max(0.0, now_s - self._event[0]):.0f} s ago")
        lines += filter(None, (self.going_down, self.delay_error))
        locks = [
            inhibitor_line(self._blocked_by(lock), now_s - since_s, lock in self._blockers)
            for lock, since_s in self._blocked_since.items()
        ]
        return {"sessions": lines or ["no session"], "locks on idle": locks}

    # --- watching

    async def start(self, wake: Wake) -> None:
        self._wake = wake
        if self._start_is_sign:
            self._note(START_SIGN, Quality.ASSUMED)
        await self._bus.start()
        with contextlib.suppress(TimeoutError):  # then logind tells them, with their first session
            self._owners.ignored_uids |= await within(FIRST_LOOK_S / 2, in_thread(_uids, self._settings.ignore_users))
        self._task = asyncio.create_task(self._run())
        await wait_for_event(self._looked, FIRST_LOOK_S)

    async def stop(self) -> None:
        """Stop watching, and close the delay locks; the bus's owner stops the bus."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._delays.stop()
        self._error = "the sessions are no longer watched"

    async def _run(self) -> None:
        interval_s = self._max_age_s * 2 / 3
        self._look_now.set()
        while True:
            await wait_for_event(self._look_now, min(interval_s, RETRY_S) if self._error else interval_s)
            before = self._state()
            try:
                whole = self._error or self._may_have_ended() or self._look_now.is_set()
                if whole or await self._ask_manager() != self._manager:
                    self._look_now.clear()
                    await self._look()
            except BusError as error:
                self._error = self._bus.error or f"{error}: see systemctl status systemd-logind"
            except Exception as error:  # noqa: BLE001 - after a fault of ours the sessions are unknown; it is tried again
                self._error = f"sessions cannot be read, a fault of this node ({type(error).__name__}): please report it"
            self._looked.set()
            if self._state() != before:
                self._wake()

    def _may_have_ended(self) -> bool:
        """No signal tells that a login gets its terminal later, or has ended while its programs go on. Where a display is
        seen, its end is."""
        now_s = self._clock.now_s()
        sessions = [session for session in self._sessions.values() if session.counts]
        return any(not session.graphical or self._judge(session, now_s).present for session in sessions)

    def _state(self) -> tuple[object, ...]:
        return (self._error, self._sessions, self._blockers, self._event, self.going_down)

    # --- looking

    async def _ask_manager(self) -> dict[str, Any]:
        prepared = self._prepared
        manager = await self._bus.properties(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER)
        self._answered_at_s = self._clock.now_s()
        if prepared == self._prepared:
            for kind, name in DELAYS.items():
                self._set_preparing(kind, manager.get(name) is True)
        self._delays.take([kind for kind, preparing in self._preparing.items() if not preparing])
        return manager

    async def _look(self) -> None:
        manager = await self._ask_manager()
        (listed,) = await self._bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListSessions", expect="a(susso)")
        seen: dict[str, Session] = {}
        for *_, path in listed:
            known = await session_properties(self._bus, path)
            if known is None:
                continue  # it ended between the two calls
            session = Session.read(path, known, self._clock.now_s(), self._boot_offset_s())
            seen[path] = replace(session, ignored=self._exception(session, self._sessions.get(path)))
        held = []
        if "idle" in str(manager.get("BlockInhibited", "idle")).split(":"):
            held = [lock for lock in await inhibitions(self._bus) if self._is_others(lock)]
        blockers = [lock for lock in held if lock.who not in self._settings.ignore_inhibitors]
        if self._manager.get("LidClosed") is True and manager.get("LidClosed") is False:
            self._note(LID_SIGN)
        self._manager = manager
        if self._error and self._answered_before and self._start_is_sign:
            self._note(BACK_SIGN, Quality.ASSUMED)
        self._compare(seen, blockers)
        self._sessions, self._blockers, self._error, self._answered_before = seen, blockers, "", True
        self._owners.by_session = {session.id: (session.uid, session.user) for session in seen.values()}
        self._owners.ignored_uids |= {s.uid for s in seen.values() if s.user in self._settings.ignore_users}
        self._owners.ignored_terminals = frozenset(s.tty for s in seen.values() if s.ignored and s.tty)
        self._answered_at_s = self._clock.now_s()
        self._blocked_since = {lock: self._blocked_since.get(lock, self._answered_at_s) for lock in held}

    def _exception(self, session: Session, before: Session | None) -> str:
        """The setting by which a session is no person's. `before`: the session as of the last look."""
        leader = name_of(PROC, session.leader)
        programs = _programs_beside(leader) if self._settings.ignore_commands else []
        if found := exception(session, leader, programs, self._settings):
            return found
        if before is not None and before.ignored and before.ignored != UNDECIDED and not programs:
            return before.ignored  # it is about to end
        young = self._clock.now_s() - session.created_s < DECIDE_S
        if self._settings.ignore_commands and young and not programs and not session.graphical and not session.tty:
            asyncio.get_running_loop().call_later(DECIDE_S, self._look_now.set)
            return UNDECIDED
        return ""

    def _is_others(self, lock: Inhibition) -> bool:
        """Whether it is another program's block lock on idle: a film, a talk, a call."""
        ours = lock.pid == os.getpid() or lock.who == OWN_LOCK or lock.uid in self._owners.ignored_uids
        return lock.blocks("idle") and not ours

    def _compare(self, seen: dict[str, Session], blockers: list[Inhibition]) -> None:
        """Note the signs that lie in the difference between two looks."""
        now_s = self._clock.now_s()
        for path, session in self._sessions.items():
            now = seen.get(path)
            if session.counts and (now is None or not now.counts):
                self._note(f"{session.user} logged out {session.place}")
            elif now and session.graphical and not now.proven_away and self._left(session, now, now_s):
                self._note(f"{session.name} left the foreground {session.place}")
        for path, session in seen.items():
            new = session.counts and session.graphical and path not in self._sessions
            if new and not session.idle and not session.active:
                self._note(f"{session.name} found in the background")  # since when is not known
        if self._blockers and not blockers:
            self._note(f"{self._blocked_by(self._blockers[0])} until just now")

    def _left(self, before: Session, now: Session, now_s: float) -> bool:
        return bool(self._judge(before, now_s).present) and not self._judge(now, now_s).present

    def _judge(self, session: Session, now_s: float) -> SessionSign:
        proof = self._proof(session.id, session.uid, now_s)
        return judge(session, proof, self._way(session, now_s), strict=self._settings.strict)

    def _way(self, session: Session, now_s: float) -> Way:
        if session.needs_connection:
            return Way(heard_s=self._connections.heard_s(session.host, now_s))
        return Way(terminal=self._sees_terminal(session.tty)) if session.tty and not session.graphical else NO_WAY

    def _blocked_by(self, lock: Inhibition) -> str:
        """The holder, and not its reason, which may be the title of a film."""
        user = self._owners.name_of(lock.uid) or f"uid {lock.uid}"
        return f"idle blocked by {one_line(lock.who, 60)} of {user} (pid {lock.pid})"

    def _note(self, sign: str, quality: Quality = Quality.EVENT) -> None:
        self._event = (self._clock.now_s(), sign, quality)

    # --- signals

    def _owner_changed(self, owner: str) -> None:
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
        if preparing and not self._preparing[kind]:
            self._announced_s[kind] = self._clock.now_s()
        ended = self._preparing[kind] and not preparing
        self._preparing[kind] = preparing
        if ended:
            self._delays.take([kind])  # on resume, before anything else
            if kind == "sleep":
                self._note(RESUME_SIGN, Quality.ASSUMED)

    def lid_moved(self) -> None:
        """The lid's switch says so; logind sends no signal of it."""
        self._look_now.set()
        asyncio.get_running_loop().call_later(LID_AGAIN_S, self._look_now.set)

    def _power_changed(self, signal: Signal) -> None:
        if signal.path == UPOWER_PATH:
            self._look_now.set()

    def _properties_changed(self, signal: Signal) -> None:
        session = self._sessions.get(signal.path)
        changes = signal.body[1] if len(signal.body) > 1 else {}
        is_sign = any(name in changes and changes[name].value is value for name, value in SIGNS.items())
        if is_sign and session and session.counts and session.graphical:
            self._note(f"user active {session.place}")  # at once: the look takes several calls, and may come too late to see it
            self._wake()
        self._look_now.set()


class _DelayLocks:
    """The delay locks, one of each kind. They are taken in the background, and held until the machine goes down."""

    def __init__(self, bus: SystemBus, wanted: bool) -> None:
        self._bus, self._wanted = bus, wanted
        self._held: dict[str, Lock] = {}
        self._old: dict[str, Lock] = {}  # of a logind that is gone; its successor may still know them
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, str] = {}

    @property
    def error(self) -> str:
        """Why a lock is not held; empty when none was refused."""
        return next(iter(self._refused.values()), "")

    def take(self, kinds: list[str]) -> None:
        for kind in kinds if self._wanted else ():
            if kind not in self._held and kind not in self._taking and self._bus.owner(LOGIN1):
                self._taking[kind] = asyncio.get_running_loop().create_task(self._take(kind))

    async def _take(self, kind: str) -> None:
        try:
            lock = await inhibit(self._bus, kind, OWN_LOCK, "stops its task in order first", "delay")
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
        """logind has restarted: `take` takes new locks, and only then the old ones are closed."""
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
