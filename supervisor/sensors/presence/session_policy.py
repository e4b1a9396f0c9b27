"""What one session of logind says about its person. Pure.

One rule: a session has a source that is proven to see its person, or it counts as somebody. Logind's Type alone decides
nothing. The sources are:

- the session agent's proof for the displays of the session. For a graphical session IdleHint and LockedHint together will do
  as well, since each alone is only a hint, and so will another session in the foreground of its seat;
- its terminal, where the terminals sensor sees that;
- without a terminal, the bytes that come over the connection of a remote login.

Where sources disagree, the later sign counts. A login is always a sign. A login screen is nobody, but a touch there is a
sign, and one that hangs is not known.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.dbus import BusError
from supervisor.linux.proc import Name, in_units, listed
from supervisor.linux.text import one_line
from supervisor.sensors.base import Away, Quality, Touch
from supervisor.sensors.presence.agent_reports import Blind, Proof
from supervisor.sensors.presence.logind_session import LOGIN_SCREENS, TERMINAL_TYPES, is_nobody

DENIES_S: Final = 10.0  # two sources of one desktop may differ by the kernel's 8-s steps and a report on its way
NO_PROOF: Final = Proof()
LID_CLOSED: Final = "the lid is closed"


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
    display: str = ""
    leader: int = 0
    ignored: str = ""  # the setting by which the session is no person's

    @classmethod
    def read(cls, path: str, known: dict[str, Any], now_s: float, offset_s: float) -> Session:
        """From logind's properties. `offset_s`: what to add to its times of CLOCK_MONOTONIC.

        Raises:
            BusError: a property is missing or has another type.
        """
        try:
            text = {n: _typed(known[n], str) for n in ("Id", "Name", "Type", "Class", "State", "RemoteHost", "TTY", "Display")}
            flag = {n: _typed(known[n], bool) for n in ("Active", "Remote", "IdleHint", "LockedHint")}
            stamp = {n: _typed(known[n], int) for n in ("TimestampMonotonic", "IdleSinceHintMonotonic")}
            uid, seat, leader = _typed(known["User"][0], int), _typed(known["Seat"][0], str), _typed(known["Leader"], int)
        except (KeyError, TypeError, IndexError) as error:
            raise BusError(f"logind describes a session in a way that this node does not know ({error})") from error

        def boot_s(usec: int) -> float:
            return min(usec / 1e6 + offset_s, now_s) if usec else NEVER

        return cls(
            id=text["Id"], path=path, uid=uid, user=text["Name"], seat=seat, type=text["Type"], kind=text["Class"],
            state=text["State"], active=flag["Active"], remote=flag["Remote"], host=text["RemoteHost"],
            tty=text["TTY"], idle=flag["IdleHint"], locked=flag["LockedHint"],
            created_s=boot_s(stamp["TimestampMonotonic"]), idle_since_s=boot_s(stamp["IdleSinceHintMonotonic"]),
            display=text["Display"], leader=leader,
        )

    @property
    def is_person(self) -> bool:
        """Whether its class is a person's; an unknown class is."""
        return self.kind not in LOGIN_SCREENS and not is_nobody(self.kind)

    @property
    def counts(self) -> bool:
        """Whether it is a person's, and has not been left. tmux keeps a session in the state "closing" for good."""
        return self.is_person and self.state != "closing" and not self.ignored

    @property
    def graphical(self) -> bool:
        """x11, wayland, mir, and every type that is no terminal."""
        return self.type not in TERMINAL_TYPES

    @property
    def needs_connection(self) -> bool:
        """Whether only the bytes of its connection tell of its person."""
        return self.counts and not self.graphical and not self.tty and (self.remote or bool(self.host))

    @property
    def proven_away(self) -> bool:
        """IdleHint counts only with a second source, here LockedHint, and only with a time."""
        return self.idle and self.locked and math.isfinite(self.idle_since_s)

    @property
    def place(self) -> str:
        """Where the person is: a seat, a terminal, another machine."""
        if self.host or self.remote:
            return f"from {one_line(self.host, 60) or 'afar'}"
        return f"on {self.tty or self.seat}" if self.tty or self.seat else "without a seat"

    @property
    def name(self) -> str:
        """The session, for people: "graphical session 3 of anna"."""
        what = "login screen, session" if self.kind in LOGIN_SCREENS else "graphical session" if self.graphical else "session"
        return f"{what} {self.id} of {self.user}"


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


@dataclass(frozen=True, slots=True)
class SessionSign:
    """What one session says: somebody is there (`present`), or when somebody was; `note` explains a session that says
    neither."""

    present: str = ""
    last_sign_at_s: float = NEVER
    sign: str = ""
    note: str = ""
    quality: Quality = Quality.EVENT


@dataclass(frozen=True, slots=True)
class Way:
    """What else sees a session's person. `terminal`: its terminal is watched. `heard_s`: when bytes last came over its
    connection (seconds of CLOCK_BOOTTIME); None: it has no connection, or none is found."""

    terminal: bool = True
    heard_s: float | None = None


NO_WAY: Final = Way()


def judge(session: Session, proof: Proof = NO_PROOF, way: Way = NO_WAY, *, strict: bool = False) -> SessionSign:
    """Whether the session shows a person. `proof`: what its agent says. `strict`: an active graphical session always does."""
    if session.ignored:
        return SessionSign(note=f"not counted: {session.ignored}")
    if session.kind in LOGIN_SCREENS:
        return _login_screen(session, proof)
    if not session.is_person:
        return SessionSign(note=f"not a person: class {session.kind}")
    if session.state == "closing":
        return SessionSign(note="left, not counted: state closing")
    if proof.active:
        return SessionSign(present=f"{session.name} active {session.place} ({proof.source})")
    if unseen := _unseen(session, proof, way):
        return SessionSign(present=f"{session.name} {session.place}, {unseen}", quality=Quality.INFERRED)
    if strict and session.graphical and session.active:
        by = "nobody there by its agent" if proof.source else "idle and locked"
        return SessionSign(present=f"{session.name} active {session.place} ({by}, but presence.strict is true)")
    return _last_sign(session, proof, way)


def _login_screen(session: Session, proof: Proof) -> SessionSign:
    """A login screen is nobody, and needs no agent. If it has one, a touch is a sign, and a display that hangs is not known."""
    if proof.active:
        return SessionSign(present=f"{session.name} active {session.place} ({proof.source})")
    if proof.blind is Blind.HUNG and not proof.source:
        return SessionSign(present=f"{session.name} {session.place}, idle time unknown: {proof.why}", quality=Quality.INFERRED)
    note = f"not a person: class {session.kind}"
    if not proof.source:
        return SessionSign(note=note)
    return SessionSign(last_sign_at_s=proof.idle_since_s, sign=f"login screen used {session.place} ({proof.source})", note=note)


def _unseen(session: Session, proof: Proof, way: Way) -> str:
    """Why nothing is proven to see the session's person, with the one thing that would help; empty where something does."""
    if not proof.source and proof.blind is Blind.HUNG:
        return f"idle time unknown: {proof.why}"
    if session.graphical:
        if proof.source or session.proven_away or not session.active:
            return ""
        hint = " (locked, but not idle)" if session.locked else " (idle, but not locked)" if session.idle else ""
        return f"idle time unknown{hint}: {proof.why}"
    if not proof.source and proof.blind is Blind.UNREADABLE:
        return f"idle time unknown: {proof.why}"
    if session.tty:
        return "" if way.terminal else f"its terminal cannot be seen: {_end_it(session)}"
    if session.needs_connection:
        return "" if way.heard_s is not None else f"without a terminal, and its connection is not found: {_end_it(session)}"
    if proof.source:
        return ""
    return f"without a terminal, and without a display that is seen: {_end_it(session)}"


def _end_it(session: Session) -> str:
    host = "" if not session.host else " or presence.ignore_hosts"
    return f"end it (loginctl terminate-session {session.id}), or except it (presence.ignore_users{host})"


def _last_sign(session: Session, proof: Proof, way: Way) -> SessionSign:
    # IdleSinceHint is when the hint changed, either way, or the terminal's last use: a sign in every case.
    last = SessionSign(last_sign_at_s=session.created_s, sign=f"{session.user} logged in {session.place}")
    if session.idle_since_s > session.created_s:
        sign = f"user active {session.place}"
        last = SessionSign(last_sign_at_s=session.idle_since_s, sign=sign, quality=Quality.INFERRED)
    if proof.source and proof.idle_since_s > last.last_sign_at_s:
        last = SessionSign(last_sign_at_s=proof.idle_since_s, sign=f"user active {session.place} ({proof.source})")
    if session.needs_connection and way.heard_s is not None and way.heard_s > last.last_sign_at_s:
        sign = f"{session.user} active {session.place} (bytes over the connection)"
        last = SessionSign(last_sign_at_s=way.heard_s, sign=sign, quality=Quality.POLLED)
    return last


def exception(session: Session, leader: Name, programs: Sequence[Name], settings: PresenceSettings) -> str:
    """The setting of node.yaml by which a session is no person's; empty: none. `leader`: the process that has opened it.
    `programs`: what runs in it beside the leader's own program."""
    if session.user in settings.ignore_users:
        return "presence.ignore_users"
    if session.host and is_host(session.host, settings.ignore_hosts):
        return "presence.ignore_hosts"
    if programs and settings.ignore_commands and all(listed(program, settings.ignore_commands) for program in programs):
        return "presence.ignore_commands"
    return excepted(leader, settings)


def is_host(host: str, entries: Collection[str]) -> bool:
    """Whether a host is one of the configured ones, which may be patterns."""
    return any(fnmatchcase(host, entry) for entry in entries)


def excepted(program: Name, settings: PresenceSettings) -> str:
    """The setting of node.yaml by which what a program shows is no person's; empty: none."""
    if settings.ignore_commands and listed(program, settings.ignore_commands):
        return "presence.ignore_commands"
    return "presence.ignore_units" if in_units(program, settings.ignore_units) else ""


def away(session: Session, proof: Proof, now_s: float) -> Iterator[Away]:
    """Which of logind and the session's agent says that nobody is at this desktop, and what the other one says."""
    if not session.counts or not session.graphical:
        return
    about, active = f"nobody at {session.name}", f"user active {session.place}"
    agent = f"session agent ({proof.source})"
    touched_s = now_s if proof.active else proof.idle_since_s
    if session.idle and math.isfinite(session.idle_since_s):
        denied = bool(proof.source) and touched_s > session.idle_since_s + DENIES_S
        yield Away("logind", about, session.idle_since_s, Touch(touched_s, agent, active) if denied else None)
    if proof.source and not proof.active:
        denied = not session.idle and session.idle_since_s > proof.idle_since_s + DENIES_S
        yield Away(agent, about, proof.idle_since_s, Touch(session.idle_since_s, "logind", active) if denied else None)


def lid_reason(manager: dict[str, Any]) -> str:
    """Why a closed lid means going down: the machine may be on its way into a bag. Empty where logind ignores the lid."""
    if manager.get("LidClosed") is not True:
        return ""
    action = manager.get("HandleLidSwitch")
    if manager.get("Docked"):
        action = manager.get("HandleLidSwitchDocked")
    elif manager.get("OnExternalPower"):
        action = manager.get("HandleLidSwitchExternalPower") or action
    return "" if action in ("ignore", "lock") else LID_CLOSED
