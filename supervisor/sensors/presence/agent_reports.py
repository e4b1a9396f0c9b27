"""What session agents report (`supervisor/sensors/session_agent/agent.py`): how long each person's own desktop is idle.

A service cannot see a desktop from outside. So a small program in each person's session looks at it, and reports over the
control socket. Its report about a session counts only if its user (SO_PEERCRED) owns that session according to logind,
while it is connected, and while the report is younger than `max_age_s`. Every other report proves nothing, and
silence is not absence: a session without a proof is active.

Ages travel, not times: a late report makes the last sign later than it was, never earlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from states.formatting import elapsed
from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import Clock
from supervisor.linux.text import one_line
from supervisor.sensors.base import Presence, PresenceSensor, Quality, Wake

UNIT: Final = "rae-node-session"
INSTALL_AGENT: Final = f"install the session agent (systemctl --user enable --now {UNIT})"
ACTIVE: Final = "active"
MAX_SESSIONS: Final = 16
MAX_INHIBITORS: Final = 16
MAX_TEXT: Final = 120
UNNAMED: Final = "an unnamed program"  # a program may keep the screen on without a name


@dataclass(frozen=True, slots=True)
class Proof:
    """What a session's agent knows of it. With `source`: somebody is `active` there now, or nobody has been since
    `idle_since_s` (seconds of CLOCK_BOOTTIME). Without `source`: nothing is proven, and `why` says what to do about it."""

    source: str = ""
    active: bool = False
    idle_since_s: float = NEVER
    why: str = INSTALL_AGENT


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One session in an agent's report.

    source: what proves it; empty: nothing does, because of `why`.
    idle_since_s: None: active.
    inhibitors: the programs that keep the desktop from idling, and when each was first reported.
    """

    source: str
    idle_since_s: float | None
    inhibitors: dict[str, float]
    why: str


@dataclass(slots=True)
class _Report:
    """The last report of one user's agent."""

    at_s: float
    sessions: dict[str, SessionReport] = field(default_factory=dict)
    typed_at_s: float = NEVER
    typed_on: str = ""


class SessionOwners:
    """Who owns which session, by logind: uid and name by session id. The logind sensor writes it, `AgentReports` reads it."""

    def __init__(self, owners: Mapping[str, tuple[int, str]] | None = None) -> None:
        self.by_session: Mapping[str, tuple[int, str]] = owners or {}

    def owns(self, uid: int, session: str) -> bool:
        """Whether logind lists the session as this user's."""
        owner = self.by_session.get(session)
        return owner is not None and owner[0] == uid

    def name_of(self, uid: int) -> str | None:
        """The name of a user; None: logind lists no session of that user."""
        return next((name for owner, name in self.by_session.values() if owner == uid), None)


class AgentReports(PresenceSensor):
    """The reports of all session agents.

    Args:
        clock: the clock.
        settings: `presence` of node.yaml.
        owners: who owns which session.
        max_age_s: how old a report may be, in seconds.
    """

    name = "session agents"

    def __init__(self, clock: Clock, settings: PresenceSettings, owners: SessionOwners, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._clock, self._settings, self._owners = clock, settings, owners
        self._wake: Wake = lambda: None
        self._reports: dict[int, _Report] = {}
        self._disconnect: dict[int, Callable[[], None]] = {}
        self._event = (NEVER, "")
        self._stopped = False

    async def start(self, wake: Wake) -> None:
        """Agents connect by themselves."""
        self._wake = wake

    async def stop(self) -> None:
        """Disconnect all agents; they connect again, and learn then what the new settings ask of them. Agents that reconnect
        before the replacement is ready are disconnected again."""
        self._stopped = True
        for disconnect in list(self._disconnect.values()):
            disconnect()
        self._wake = lambda: None

    # --- agents' reports

    def connect(self, uid: int, disconnect: Callable[[], None]) -> tuple[_Connection, dict[str, Any]]:
        """An agent has connected. Returns its connection, and the answer: how often it must report."""
        self._disconnect[uid] = disconnect
        return _Connection(self, uid, disconnect), {"every_s": self._max_age_s * 2 / 3}

    def receive(self, uid: int, message: Mapping[str, Any]) -> None:
        """Take over one report.

        Raises:
            ValueError: it has another form, or this sensor has stopped. The last report stays until it is too old.
        """
        if self._stopped:
            raise ValueError("the node restarts its sensors: come back in a moment")
        now_s = self._clock.now_s()
        new, old = _parse(message, now_s), self._reports.get(uid)
        for number, session in new.sessions.items():
            if old is not None and (before := old.sessions.get(number)) is not None:
                known = session.inhibitors.keys() & before.inhibitors.keys()
                session.inhibitors.update((name, before.inhibitors[name]) for name in known)
        self._reports[uid] = new
        if old is None or _changed(old, new):
            self._note_signs(uid, old, new, now_s)
            self._wake()

    def disconnected(self, uid: int, disconnect: Callable[[], None]) -> None:
        """The agent has gone, and its proofs with it, unless another agent of the user has replaced it."""
        if self._disconnect.get(uid) is disconnect:
            del self._disconnect[uid]
            self._reports.pop(uid, None)
            self._wake()

    def _note_signs(self, uid: int, old: _Report | None, new: _Report, now_s: float) -> None:
        """Keep what was a sign at this moment, even if it is over before the next look."""
        if new.typed_at_s > (old.typed_at_s if old else NEVER) and (name := self._owners.name_of(uid)) is not None:
            self._note(new.typed_at_s, f"{name} active on {new.typed_on or 'a terminal'}")
        for number, before in (old.sessions if old else {}).items():
            now = new.sessions.get(number)
            counted = self._counted(before)
            if counted and not (now and self._counted(now)) and self._owners.owns(uid, number):
                self._note(now_s, f"{self._blocked(uid, number, counted)} until just now")

    def _note(self, at_s: float, sign: str) -> None:
        if at_s >= self._event[0]:
            self._event = (at_s, sign)

    # --- what others read

    def proof(self, session: str, uid: int, now_s: float) -> Proof:
        """What the agent of the session's owner says of it."""
        report = self._reports.get(uid)
        if report is None:
            return Proof()
        age_s = now_s - report.at_s
        if age_s > self._max_age_s:
            return Proof(why=f"the session agent has been silent for {age_s:.0f} s (systemctl --user restart {UNIT})")
        seen = report.sessions.get(session)
        if seen is None:
            return Proof(why=f"the session agent sees nothing of it (journalctl --user -u {UNIT})")
        if not seen.source:
            return Proof(why=f"{seen.why or 'the session agent found no source'} (journalctl --user -u {UNIT})")
        since_s = now_s if seen.idle_since_s is None else seen.idle_since_s
        return Proof(seen.source, seen.idle_since_s is None, since_s, "")

    def latest(self, now_s: float) -> Presence:
        """What does not belong to one session's idle time: own terminals, and what keeps a desktop from being idle."""
        present, signs = "", [self._event]
        for uid, report in self._reports.items():
            if (name := self._owners.name_of(uid)) is not None:
                signs.append((report.typed_at_s, f"{name} active on {report.typed_on or 'a terminal'}"))
            for number, session in report.sessions.items():
                fresh = now_s - report.at_s <= self._max_age_s
                counted = self._counted(session)
                if counted and fresh and not present and self._owners.owns(uid, number):
                    present = self._blocked(uid, number, counted)
        at_s, sign = max(signs)
        if not self._reports:
            sign = sign or "no source: no session agent has reported"
        quality = Quality.EVENT if self._reports else Quality.UNKNOWN
        return Presence(self.name, now_s, min(at_s, now_s), sign, present, quality=quality)

    def details(self) -> dict[str, list[str]]:
        """Each session that an agent reports, and why a report does not count."""
        now_s, lines = self._clock.now_s(), []
        for uid, report in self._reports.items():
            for number, session in report.sessions.items():
                if not self._owners.owns(uid, number):
                    lines.append(f"session {number}: uid {uid} reports it, but does not own it: not counted")
                    continue
                proof = self.proof(number, uid, now_s)
                idle = "active" if proof.active else f"idle for {now_s - proof.idle_since_s:.0f} s"
                reading = f"{idle} by {proof.source}" if proof.source else f"idle time unknown: {proof.why}"
                lines.append(f"session {number} of {self._owners.name_of(uid)}: {reading}")
                for inhibitor, since_s in session.inhibitors.items():
                    counts = "" if inhibitor in self._counted(session) else "not counted: "
                    age = elapsed(max(0.0, now_s - since_s))
                    blocked = self._blocked(uid, number, [inhibitor])
                    lines.append(f"{blocked}, for {age} at least ({counts}presence.ignore_inhibitors)")
        if self._event[1]:
            lines.append(f"{self._event[1]}, {max(0.0, now_s - self._event[0]):.0f} s ago")
        return {"idle sources": lines or ["no session agent has reported"]}

    def _counted(self, session: SessionReport) -> list[str]:
        """The programs that keep the desktop from idling, without those that node.yaml excepts."""
        return [name for name in session.inhibitors if name not in self._settings.ignore_inhibitors]

    def _blocked(self, uid: int, session: str, inhibitors: list[str]) -> str:
        user = self._owners.name_of(uid) or f"uid {uid}"
        return f"idle blocked by {', '.join(inhibitors)} of {user} (session {session})"

    # --- what the daemon passes on to a look without a daemon, to which no agent reports

    def snapshot(self) -> dict[str, Any]:
        """All reports; `restore` takes the value of "desktop"."""
        now_s = self._clock.now_s()
        return {"desktop": [_as_json(uid, report, now_s) for uid, report in self._reports.items()]}

    def restore(self, reports: Any) -> None:
        """Take over another daemon's reports, as old as they are.

        Raises:
            ValueError: they have another form.
        """
        now_s = self._clock.now_s()
        for entry in _is(reports, list, "a list of reports"):
            report = _parse(_is(entry, dict, "a report"), now_s - _age(entry.get("age_s")))
            self._reports[_is(entry.get("uid"), int, "uid")] = report


@dataclass(frozen=True, slots=True)
class _Connection:
    """One agent's connection, as the control socket uses it."""

    reports: AgentReports
    uid: int
    disconnect: Callable[[], None]

    def receive(self, message: Mapping[str, Any]) -> None:
        self.reports.receive(self.uid, message)

    def closed(self) -> None:
        self.reports.disconnected(self.uid, self.disconnect)


def _changed(old: _Report, new: _Report) -> bool:
    """Whether it says something new; a growing age is nothing new."""

    def key(report: _Report) -> object:
        return {n: (s.source, s.idle_since_s is None, tuple(s.inhibitors), s.why) for n, s in report.sessions.items()}

    return key(old) != key(new) or new.typed_at_s > old.typed_at_s + 0.5


def _as_json(uid: int, report: _Report, now_s: float) -> dict[str, Any]:
    typed = {"age_s": report.at_s - report.typed_at_s, "on": report.typed_on} if math.isfinite(report.typed_at_s) else None
    sessions = [
        {
            "id": number,
            "source": session.source,
            "idle": ACTIVE if session.idle_since_s is None else max(0.0, report.at_s - session.idle_since_s),
            "inhibitors": list(session.inhibitors),
            "held": {name: max(0.0, report.at_s - at_s) for name, at_s in session.inhibitors.items()},
            "why": session.why,
        }
        for number, session in report.sessions.items()
    ]
    return {"uid": uid, "age_s": max(0.0, now_s - report.at_s), "sessions": sessions, "terminals": typed}


# --- parsing what another program wrote


def _parse(message: Any, at_s: float) -> _Report:
    sessions = _is(message.get("sessions"), list, "sessions")
    if len(sessions) > MAX_SESSIONS:
        raise ValueError(f"more than {MAX_SESSIONS} sessions")
    report = _Report(at_s, dict(_session(entry, at_s) for entry in sessions))
    if (terminals := message.get("terminals")) is not None:
        typed = _is(terminals, dict, "terminals")
        report.typed_at_s, report.typed_on = at_s - _age(typed.get("age_s")), _text(typed.get("on"))
    return report


def _session(entry: Any, at_s: float) -> tuple[str, SessionReport]:
    fields = _is(entry, dict, "a session")
    idle = fields.get("idle")
    since_s = None if idle == ACTIVE else at_s - _age(idle)
    listed = _is(fields.get("inhibitors", []), list, "inhibitors")[:MAX_INHIBITORS]
    ages = {_text(name): _age(age) for name, age in _is(fields.get("held", {}), dict, "held").items()}  # only in a snapshot
    inhibitors = {name: at_s - ages.get(name, 0.0) for name in (_text(each) or UNNAMED for each in listed)}
    report = SessionReport(_text(fields.get("source")), since_s, inhibitors, _text(fields.get("why", "")))
    return _text(fields.get("id")), report


def _is(value: Any, kind: type[Any], what: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{what} is no {kind.__name__}")
    return value


def _age(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise ValueError("an age is a number of seconds ≥ 0")
    return float(value)


def _text(value: Any) -> str:
    text: str = _is(value, str, "a text")
    return one_line(text, MAX_TEXT)
