"""What session agents report (`supervisor/sensors/session_agent/agent.py`): how long each person's own displays are idle.

A service cannot see a desktop from outside. So a small program in each person's session looks at it, and reports over the
control socket. Its report about a session counts only if its user (SO_PEERCRED) owns that session according to logind,
while it is connected, and while the report is younger than `max_age_s`. Every other report proves nothing, and
silence is not absence: a display without a proof is active.

Ages travel, not times: a late report makes the last sign later than it was, never earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, ValidationError, convert, to_builtins

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import Clock
from supervisor.linux.text import one_line
from supervisor.sensors.base import Presence, PresenceSensor, Quality, Wake, inhibitor_line

UNIT: Final = "rae-node-session"
INSTALL_AGENT: Final = f"install the session agent (systemctl --user enable --now {UNIT})"
ACTIVE: Final = "active"
MAX_SESSIONS: Final = 16
MAX_INHIBITORS: Final = 16
MAX_DISPLAYS: Final = 16
MAX_TEXT: Final = 120
Age = Annotated[float, Meta(ge=0, lt=1e12)]
DROPPED: Final = "the kernel dropped events of terminals"
UNNAMED: Final = "an unnamed program"  # a program may keep the screen on without a name


class Blind(Enum):
    """Why an agent proves nothing: it is not there, knows of no display, cannot read one, or one that it could read hangs."""

    NO_AGENT = auto()
    NO_DISPLAY = auto()
    UNREADABLE = auto()
    HUNG = auto()


@dataclass(frozen=True, slots=True)
class Proof:
    """What an agent knows of a session, or of a display. With `source`: somebody is `active` there now, or nobody has been
    since `idle_since_s` (seconds of CLOCK_BOOTTIME). Without `source`: nothing is proven because of `blind`, and `why` says
    what to do about it."""

    source: str = ""
    active: bool = False
    idle_since_s: float = NEVER
    why: str = INSTALL_AGENT
    blind: Blind = Blind.NO_AGENT


class SessionReport(Struct, kw_only=True):
    """One session in an agent's report. `source`: what proves it; empty: nothing does, because of `why`. `idle`: seconds.
    `hung`: what could be read does not answer. `displays`: those that the agent counts to it. `inhibitors`: the programs that
    keep the desktop from idling. `held`: for how long so far; only in a snapshot."""

    id: str
    source: str
    idle: Age | Literal["active"]
    inhibitors: list[str] = []
    held: dict[str, Age] = {}
    why: str = ""
    hung: bool = False
    displays: list[str] = []

    def __post_init__(self) -> None:
        self.id, self.source, self.why = _text(self.id), _text(self.source), _text(self.why)
        self.displays = [_text(name) for name in self.displays[:MAX_DISPLAYS]]
        self.inhibitors = [_text(name) or UNNAMED for name in self.inhibitors[:MAX_INHIBITORS]]
        self.held = {_text(name): age_s for name, age_s in self.held.items()}


class Typed(Struct):
    """When and where bytes were last typed on one of the user's terminals. `on` is empty where the kernel dropped events."""

    age_s: Age
    on: str

    def __post_init__(self) -> None:
        self.on = _text(self.on)


class AgentReport(Struct, kw_only=True):
    """An agent's report. `others`: displays of the user that belong to none of the sessions; the `id` is the display. `uid`
    and `age_s` are only in a snapshot. `at_s`: when it was true (seconds of CLOCK_BOOTTIME)."""

    sessions: Annotated[list[SessionReport], Meta(max_length=MAX_SESSIONS)]
    terminals: Typed | None = None
    others: Annotated[list[SessionReport], Meta(max_length=MAX_DISPLAYS)] = []
    uid: int = -1
    age_s: Age = 0.0
    at_s: float = NEVER

    def session(self, number: str) -> SessionReport | None:
        return next((session for session in self.sessions if session.id == number), None)

    @property
    def typed_at_s(self) -> float:
        """When bytes were last typed; NEVER: not known."""
        return self.at_s - self.terminals.age_s if self.terminals else NEVER


class SessionOwners:
    """Who owns which session, by logind: uid and name by session id. Also whom node.yaml takes for no person: users, and the
    terminals of sessions. The logind sensor writes it; the other sensors read it."""

    def __init__(self, owners: Mapping[str, tuple[int, str]] | None = None) -> None:
        self.by_session: Mapping[str, tuple[int, str]] = owners or {}
        self.ignored_uids: set[int] = set()
        self.ignored_terminals: frozenset[str] = frozenset()

    def owns(self, uid: int, session: str) -> bool:
        """Whether logind lists the session as this user's."""
        owner = self.by_session.get(session)
        return owner is not None and owner[0] == uid

    def name_of(self, uid: int) -> str | None:
        """The name of a user; None: logind lists no session of that user."""
        return next((name for owner, name in self.by_session.values() if owner == uid), None)


class AgentReports(PresenceSensor):
    """The reports of all session agents. `max_age_s`: how old a report may be, in seconds."""

    name = "session agents"

    def __init__(self, clock: Clock, settings: PresenceSettings, owners: SessionOwners, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._clock, self._settings, self._owners = clock, settings, owners
        self._wake: Wake = lambda: None
        self._reports: dict[int, AgentReport] = {}
        self._disconnect: dict[int, Callable[[], None]] = {}
        self._event = (NEVER, "")
        self._stopped = False

    async def start(self, wake: Wake) -> None:
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
        new, old = _parse(message), self._reports.get(uid)
        new.at_s = now_s
        for session in new.sessions:
            session.held = {}
            if old is not None and (before := old.session(session.id)) is not None:
                known = (name for name in session.inhibitors if name in before.inhibitors)
                session.held = {name: now_s - old.at_s + before.held.get(name, 0.0) for name in known}
        self._reports[uid] = new
        if old is None or _changed(old, new):
            self._note_signs(uid, old, new)
            self._wake()

    def disconnected(self, uid: int, disconnect: Callable[[], None]) -> None:
        """The agent has gone, and its proofs with it, unless another agent of the user has replaced it."""
        if self._disconnect.get(uid) is disconnect:
            del self._disconnect[uid]
            self._reports.pop(uid, None)
            self._wake()

    def _note_signs(self, uid: int, old: AgentReport | None, new: AgentReport) -> None:
        """Keep what was a sign at this moment, even if it is over before the next look."""
        signs = [self._event, self._typed(uid, new)]
        for before in old.sessions if old else ():
            now, counted = new.session(before.id), self._counted(before)
            ours = self._owners.owns(uid, before.id) and uid not in self._owners.ignored_uids
            if counted and not (now and self._counted(now)) and ours:
                signs.append((new.at_s, f"{self._blocked(uid, before.id, counted)} until just now"))
        self._event = max(signs)

    def _typed(self, uid: int, report: AgentReport) -> tuple[float, str]:
        """The last typing in a report, as time and sign."""
        name = self._owners.name_of(uid)
        if name is None or report.terminals is None or self._ignored(uid, report.terminals.on):
            return NEVER, ""
        on = report.terminals.on
        return report.typed_at_s, f"{name} active on {on}" if on else f"{name} may have typed: {DROPPED}"

    # --- what others read

    def proof(self, session: str, uid: int, now_s: float) -> Proof:
        """What the agent of the session's owner says of it."""
        return self._proof(uid, now_s, lambda report: report.session(session))

    def display_proof(self, display: str, uid: int, now_s: float) -> Proof | None:
        """What a user's agent says of a display that belongs to none of the user's sessions; None: it belongs to one, whose
        proof speaks for it."""
        report = self._reports.get(uid)
        fresh = report.sessions if report is not None and now_s - report.at_s <= self._max_age_s else []
        if any(display in seen.displays and self._owners.owns(uid, seen.id) for seen in fresh):
            return None
        return self._proof(uid, now_s, lambda known: next((s for s in known.others if display in (s.id, *s.displays)), None))

    @property
    def users(self) -> list[int]:
        """The users whose agents have reported."""
        return list(self._reports)

    def other_displays(self) -> list[tuple[str, int]]:
        """The displays that belong to none of their user's sessions, with the user, as the agents report them."""
        return [(seen.id, uid) for uid, report in self._reports.items() for seen in report.others]

    def _proof(self, uid: int, now_s: float, find: Callable[[AgentReport], SessionReport | None]) -> Proof:
        report = self._reports.get(uid)
        if report is None:
            return Proof()
        age_s = now_s - report.at_s
        if age_s > self._max_age_s:
            return Proof(why=f"the session agent has been silent for {age_s:.0f} s (systemctl --user restart {UNIT})")
        seen = find(report)
        if seen is None:
            why = f"the session agent sees nothing of it (systemctl --user restart {UNIT})"
            return Proof(why=why, blind=Blind.NO_DISPLAY)
        if not seen.source:
            blind = Blind.HUNG if seen.hung else Blind.UNREADABLE
            return Proof(why=f"{seen.why or 'the session agent found no source'} (journalctl --user -u {UNIT})", blind=blind)
        if seen.idle == ACTIVE:
            return Proof(seen.source, True, now_s, "")
        return Proof(seen.source, False, report.at_s - seen.idle, "")

    def latest(self, now_s: float) -> Presence:
        """What does not belong to one session's idle time: own terminals, and what keeps a desktop from being idle."""
        present, signs = "", [self._event]
        for uid, report in self._reports.items():
            signs.append(self._typed(uid, report))
            for session in report.sessions if now_s - report.at_s <= self._max_age_s else ():
                counted = self._counted(session)
                if counted and not present and self._owners.owns(uid, session.id) and uid not in self._owners.ignored_uids:
                    present = self._blocked(uid, session.id, counted)
        at_s, sign = max(signs)
        if not self._reports:
            sign = sign or "no source: no session agent has reported"
        quality = Quality.EVENT if self._reports else Quality.UNKNOWN
        return Presence(self.name, now_s, min(at_s, now_s), sign, present, quality=quality)

    def details(self) -> dict[str, list[str]]:
        """Each session that an agent reports, and why a report does not count."""
        now_s, lines = self._clock.now_s(), []
        for uid, report in self._reports.items():
            for session in report.sessions:
                if not self._owners.owns(uid, session.id):
                    lines.append(f"session {session.id}: uid {uid} reports it, but does not own it: not counted")
                    continue
                proof = self.proof(session.id, uid, now_s)
                idle = "active" if proof.active else f"idle for {now_s - proof.idle_since_s:.0f} s"
                reading = f"{idle} by {proof.source}" if proof.source else f"idle time unknown: {proof.why}"
                on = f" ({', '.join(session.displays)})" if session.displays else ""
                lines.append(f"session {session.id} of {self._owners.name_of(uid)}{on}: {reading}")
                for inhibitor in session.inhibitors:
                    held_s = now_s - report.at_s + session.held.get(inhibitor, 0.0)
                    blocked = self._blocked(uid, session.id, [inhibitor])
                    lines.append(inhibitor_line(blocked, held_s, inhibitor in self._counted(session)))
        if self._event[1]:
            lines.append(f"{self._event[1]}, {max(0.0, now_s - self._event[0]):.0f} s ago")
        return {"idle sources": lines or ["no session agent has reported"]}

    def _ignored(self, uid: int, terminal: str) -> bool:
        return uid in self._owners.ignored_uids or terminal in self._owners.ignored_terminals

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
        for uid, report in self._reports.items():
            report.uid, report.age_s = uid, max(0.0, now_s - report.at_s)
        return {"desktop": to_builtins(list(self._reports.values()))}

    def restore(self, reports: Any) -> None:
        """Take over another daemon's reports, as old as they are.

        Raises:
            ValueError: they have another form.
        """
        now_s = self._clock.now_s()
        if not isinstance(reports, list):
            raise ValueError("no list of reports")
        for report in [_parse(entry) for entry in reports]:
            report.at_s = now_s - report.age_s
            self._reports[report.uid] = report


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


def _changed(old: AgentReport, new: AgentReport) -> bool:
    """Whether it says something new; a growing age is nothing new."""

    def key(report: AgentReport) -> object:
        seen = [*report.sessions, *report.others]
        return [(s.id, s.source, s.idle == ACTIVE, s.inhibitors, s.why, s.hung, s.displays) for s in seen]

    return key(old) != key(new) or new.typed_at_s > old.typed_at_s + 0.5


def _parse(message: Any) -> AgentReport:
    try:
        return convert(message, AgentReport)
    except ValidationError as error:
        raise ValueError(str(error)) from error


def _text(text: str) -> str:
    return one_line(text, MAX_TEXT)
