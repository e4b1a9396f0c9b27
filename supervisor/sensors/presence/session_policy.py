"""What one session of logind says about its person. Pure.

A graphical session in the foreground is a person, unless it is proven that nobody is there: by the session agent's report,
or by IdleHint and LockedHint together, since each alone is only a hint. Where these disagree, the later sign counts. Typing
at a session's terminal is the terminals sensor's concern; here a login counts, and what logind knows of the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from states.observation import NEVER
from supervisor.linux.dbus import BusError
from supervisor.linux.text import one_line
from supervisor.sensors.base import Away, Quality, Touch
from supervisor.sensors.presence.agent_reports import Proof
from supervisor.sensors.presence.logind_session import TERMINAL_TYPES

NOT_PEOPLE: Final = ("greeter", "lock-screen", "none", "background", "manager")  # also what begins like the last two
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

    @classmethod
    def read(cls, path: str, known: dict[str, Any], now_s: float, offset_s: float) -> Session:
        """From logind's properties. `offset_s`: what to add to its times of CLOCK_MONOTONIC.

        Raises:
            BusError: a property is missing or has another type.
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
        """Whether its class is a person's; an unknown class is."""
        return self.kind not in NOT_PEOPLE and not self.kind.startswith(("background-", "manager-"))

    @property
    def counts(self) -> bool:
        """Whether a person's session has not been left. tmux keeps a session in the state "closing" for good."""
        return self.is_person and self.state != "closing"

    @property
    def graphical(self) -> bool:
        """x11, wayland, mir, and every type that is no terminal."""
        return self.type not in TERMINAL_TYPES

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
        return f"{'graphical ' if self.graphical else ''}session {self.id} of {self.user}"


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


def judge(session: Session, proof: Proof = NO_PROOF, *, strict: bool = False) -> SessionSign:
    """Whether the session shows a person. `proof`: what its agent says. `strict`: an active graphical session always does."""
    if not session.is_person:
        return SessionSign(note=f"not a person: class {session.kind}")
    if session.state == "closing":
        return SessionSign(note="left, not counted: state closing")
    # IdleSinceHint is when the hint changed, either way, or the terminal's last use: a sign in every case.
    last = SessionSign(last_sign_at_s=session.created_s, sign=f"{session.user} logged in {session.place}")
    if session.idle_since_s > session.created_s:
        sign = f"user active {session.place}"
        last = SessionSign(last_sign_at_s=session.idle_since_s, sign=sign, quality=Quality.INFERRED)
    if proof.source and proof.idle_since_s > last.last_sign_at_s:
        last = SessionSign(last_sign_at_s=proof.idle_since_s, sign=f"user active {session.place} ({proof.source})")
    if proof.active:
        return SessionSign(present=f"{session.name} active {session.place} ({proof.source})")
    away = bool(proof.source) or session.proven_away
    if not session.graphical or not session.active or (away and not strict):
        return last
    if away:
        by = "nobody there by its agent" if proof.source else "idle and locked"
        return SessionSign(present=f"{session.name} active {session.place} ({by}, but presence.strict is true)")
    hint = ""
    if session.locked:
        hint = " (locked, but not idle)"
    elif session.idle:
        hint = " (idle, but not locked)"
    return SessionSign(
        present=f"{session.name} {session.place}, idle time unknown{hint}: {proof.why}", quality=Quality.INFERRED
    )


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
