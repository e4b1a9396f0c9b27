"""What session agents report (`supervisor/sensors/session_agent/agent.py`): how long each person's own desktop has been idle.

A service sees no desktop from outside, so that a small program in each person's session looks for it, and says what it
sees over the control socket. It is believed about a session only if its user (SO_PEERCRED) owns that session according
to logind, while it is connected, and as long as its last report is younger than `presence.max_age_sec`. Whatever else
it says proves nothing, and nobody's silence is an absence: a session without a proof is active (R12).

Ages travel, not times: a report that is late makes the person come out later than it was, never earlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from states.observation import NEVER
from states.words import elapsed
from supervisor.config.schema import PresenceSettings
from supervisor.linux.clock import Clock
from supervisor.sensors.base import Presence, Quality, Wake

UNIT: Final = "rae-node-session"
MEND: Final = f"install the session agent (systemctl --user enable --now {UNIT})"
ACTIVE: Final = "active"
MAX_SESSIONS: Final = 16
MAX_INHIBITORS: Final = 16
MAX_TEXT: Final = 120
UNNAMED: Final = "an unnamed program"  # whoever keeps the screen on does so without a name, too


@dataclass(frozen=True, slots=True)
class Proof:
    """What is known of a session by its agent. With `source`: somebody is `active` there now, or nobody since
    `idle_since_s` (seconds of CLOCK_BOOTTIME). Without: nothing, and `why` says what would mend that."""

    source: str = ""
    active: bool = False
    idle_since_s: float = NEVER
    why: str = MEND


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One session, as its agent told of it. `idle_since_s` None: active; `source` empty: unproven, because of `why`."""

    source: str
    idle_since_s: float | None
    inhibitors: tuple[str, ...]
    why: str


@dataclass(slots=True)
class _Report:
    """The last words of one user's agent."""

    at_s: float
    sessions: dict[str, SessionReport] = field(default_factory=dict)
    typed_at_s: float = NEVER
    typed_on: str = ""
    held_since: dict[str, dict[str, float]] = field(default_factory=dict)  # by session: inhibitors, and when first told


class Desktop:
    """The reports of all agents.

    Args:
        clock: the clock.
        settings: presence.max_age_sec is how old a report may be.
        owner: uid and name of the owner of a session that logind lists, None for others.
        name_of: the name of a user who has a session by logind's list, None for others.
    """

    name = "desktop"

    def __init__(
        self,
        clock: Clock,
        settings: PresenceSettings,
        owner: Callable[[str], tuple[int, str] | None],
        name_of: Callable[[int], str | None],
    ) -> None:
        self._clock, self._settings, self._owner, self._name_of = clock, settings, owner, name_of
        self._wake: Wake = lambda: None
        self._reports: dict[int, _Report] = {}
        self._hang_up: dict[int, Callable[[], None]] = {}
        self._event = (NEVER, "")
        self._stopped = False

    async def start(self, wake: Wake) -> None:
        """Begin to wake; agents come by themselves."""
        self._wake = wake

    async def stop(self) -> None:
        """Send the agents away: they come back, and hear then what is asked of them. Who is back before another took this
        one's place is sent away again, or its reports would reach nobody."""
        self._stopped = True
        for hang_up in list(self._hang_up.values()):
            hang_up()
        self._wake = lambda: None

    # What agents say

    def hearing(self, uid: int, hang_up: Callable[[], None]) -> tuple[_Hearing, dict[str, Any]]:
        """Another agent has connected; with what hears it, what it is to know: how often to report."""
        self._hang_up[uid] = hang_up
        return _Hearing(self, uid, hang_up), {"every_s": self._settings.max_age_sec * 2 / 3}

    def hear(self, uid: int, message: Mapping[str, Any]) -> None:
        """One report.

        Raises:
            ValueError: it is none, or nobody asks any more; the last one holds until it is too old.
        """
        if self._stopped:
            raise ValueError("the node makes its sensors anew: come back in a moment")
        now_s = self._clock.now_s()
        new, old = _parse(message, now_s), self._reports.get(uid)
        for number, told in new.sessions.items():
            before = old.held_since.get(number, {}) if old else {}
            new.held_since[number] = {holder: before.get(holder, now_s) for holder in told.inhibitors}
        self._reports[uid] = new
        if old is None or _changed(old, new):
            self._note(uid, old, new, now_s)
            self._wake()

    def gone(self, uid: int, hang_up: Callable[[], None]) -> None:
        """The agent has gone, and its proofs with it, unless another took its place."""
        if self._hang_up.get(uid) is hang_up:
            del self._hang_up[uid]
            self._reports.pop(uid, None)
            self._wake()

    def _note(self, uid: int, old: _Report | None, new: _Report, now_s: float) -> None:
        """What was a sign at this moment, however soon it is over."""
        if new.typed_at_s > (old.typed_at_s if old else NEVER) and (name := self._name_of(uid)) is not None:
            self._sign(new.typed_at_s, f"{name} active on {new.typed_on or 'a terminal'}")
        for number, report in (old.sessions if old else {}).items():
            now = new.sessions.get(number)
            held, still = self._counted(report), self._counted(now) if now else []
            if held and not still and self._owns(uid, number):
                self._sign(now_s, f"{self._blocked(uid, number, held)} until just now")

    def _sign(self, at_s: float, sign: str) -> None:
        if at_s >= self._event[0]:
            self._event = (at_s, sign)

    # What others read

    def proof(self, session: str, uid: int, now_s: float) -> Proof:
        """What the agent of the session's owner says of it."""
        report = self._reports.get(uid)
        if report is None:
            return Proof()
        age_s = now_s - report.at_s
        if age_s > self._settings.max_age_sec:
            return Proof(why=f"the session agent has been silent for {age_s:.0f} s (systemctl --user restart {UNIT})")
        told = report.sessions.get(session)
        if told is None:
            return Proof(why=f"the session agent sees nothing of it (journalctl --user -u {UNIT})")
        if not told.source:
            return Proof(why=f"{told.why or 'the session agent found no source'} (journalctl --user -u {UNIT})")
        since_s = now_s if told.idle_since_s is None else told.idle_since_s
        return Proof(told.source, told.idle_since_s is None, since_s, "")

    def latest(self, now_s: float) -> Presence:
        """What does not belong to one session's idle time: own terminals, and what keeps a desktop from being idle."""
        present, signs = "", [self._event]
        for uid, report in self._reports.items():
            if (name := self._name_of(uid)) is not None:
                signs.append((report.typed_at_s, f"{name} active on {report.typed_on or 'a terminal'}"))
            for number, told in report.sessions.items():
                fresh = now_s - report.at_s <= self._settings.max_age_sec
                held = self._counted(told)
                if held and fresh and not present and self._owns(uid, number):
                    present = self._blocked(uid, number, held)
        at_s, sign = max(signs)
        if not self._reports:
            none = sign or "no source: no session agent has reported"
            return Presence("session agents", now_s, min(at_s, now_s), none, quality=Quality.UNKNOWN)
        return Presence("session agents", now_s, min(at_s, now_s), sign, present)

    def describe(self) -> list[str]:
        """Each session that an agent tells of, one line each, for people; what is not believed, and why."""
        now_s, lines = self._clock.now_s(), []
        for uid, report in self._reports.items():
            for number in report.sessions:
                if not self._owns(uid, number):
                    lines.append(f"session {number}: uid {uid} tells of it, but does not own it: not believed")
                    continue
                proof = self.proof(number, uid, now_s)
                idle = "active" if proof.active else f"idle for {now_s - proof.idle_since_s:.0f} s"
                said = f"{idle} by {proof.source}" if proof.source else f"idle time unknown: {proof.why}"
                lines.append(f"session {number} of {self._name_of(uid)}: {said}")
                lines += self._holders(uid, number, now_s)
        if self._event[1]:
            lines.append(f"{self._event[1]}, {max(0.0, now_s - self._event[0]):.0f} s ago")
        return lines or ["no session agent has reported"]

    def _owns(self, uid: int, session: str) -> bool:
        owner = self._owner(session)
        return owner is not None and owner[0] == uid

    def _counted(self, told: SessionReport) -> list[str]:
        """Who keeps the desktop from idling, without those that node.yaml excepts (T7)."""
        return [holder for holder in told.inhibitors if holder not in self._settings.ignore_inhibitors]

    def _blocked(self, uid: int, session: str, holders: list[str]) -> str:
        who = self._name_of(uid) or f"uid {uid}"
        return f"idle blocked by {', '.join(holders)} of {who} (session {session})"

    def _holders(self, uid: int, session: str, now_s: float) -> list[str]:
        """Each holder with its age, as far as it is known, for people; what to set for one that is no person."""
        lines = []
        for holder, since_s in self._reports[uid].held_since.get(session, {}).items():
            counts = holder not in self._settings.ignore_inhibitors
            how = "presence.ignore_inhibitors" if counts else "not counted: presence.ignore_inhibitors"
            age = elapsed(max(0.0, now_s - since_s))
            lines.append(f"{self._blocked(uid, session, [holder])}, for {age} at least ({how})")
        return lines

    # What one daemon tells another look

    def snapshot(self) -> dict[str, Any]:
        """All reports, as `restore` takes them: for one look without a daemon, which no agent tells anything."""
        now_s = self._clock.now_s()
        return {"desktop": [_told(uid, report, now_s) for uid, report in self._reports.items()]}

    def restore(self, told: Any) -> None:
        """Take over another's reports, as old as they are.

        Raises:
            ValueError: they are none.
        """
        now_s = self._clock.now_s()
        if not isinstance(told, list):
            raise ValueError("no list of reports")
        for entry in told:
            report = _parse(_is(entry, dict, "a report"), now_s - _age(entry.get("age_s")))
            for told in entry["sessions"]:
                held = _is(told.get("held", {}), dict, "held")
                report.held_since[_text(told.get("id"))] = {_text(who): report.at_s - _age(s) for who, s in held.items()}
            self._reports[_is(entry.get("uid"), int, "uid")] = report


class _Hearing:
    """One agent's connection."""

    def __init__(self, desktop: Desktop, uid: int, hang_up: Callable[[], None]) -> None:
        self._desktop, self._uid, self._hang_up = desktop, uid, hang_up

    def hear(self, message: Mapping[str, Any]) -> None:
        self._desktop.hear(self._uid, message)

    def gone(self) -> None:
        self._desktop.gone(self._uid, self._hang_up)


def _changed(old: _Report, new: _Report) -> bool:
    """It says something new; ages that go on by themselves are nothing new."""

    def key(report: _Report) -> object:
        return {n: (s.source, s.idle_since_s is None, s.inhibitors, s.why) for n, s in report.sessions.items()}

    return key(old) != key(new) or new.typed_at_s > old.typed_at_s + 0.5


def _told(uid: int, report: _Report, now_s: float) -> dict[str, Any]:
    typed = {"age_s": report.at_s - report.typed_at_s, "on": report.typed_on} if math.isfinite(report.typed_at_s) else None
    sessions = [
        {
            "id": number,
            "source": told.source,
            "idle": ACTIVE if told.idle_since_s is None else max(0.0, report.at_s - told.idle_since_s),
            "inhibitors": list(told.inhibitors),
            "held": {holder: max(0.0, report.at_s - at_s) for holder, at_s in report.held_since.get(number, {}).items()},
            "why": told.why,
        }
        for number, told in report.sessions.items()
    ]
    return {"uid": uid, "age_s": max(0.0, now_s - report.at_s), "sessions": sessions, "terminals": typed}


# --- reading what somebody else wrote


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
    told = _is(entry, dict, "a session")
    idle = told.get("idle")
    since_s = None if idle == ACTIVE else at_s - _age(idle)
    held = [_text(holder) or UNNAMED for holder in _is(told.get("inhibitors", []), list, "inhibitors")[:MAX_INHIBITORS]]
    report = SessionReport(_text(told.get("source")), since_s, tuple(held), _text(told.get("why", "")))
    return _text(told.get("id")), report


def _is(value: Any, kind: type[Any], what: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{what} is no {kind.__name__}")
    return value


def _age(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise ValueError("an age is a number of seconds ≥ 0")
    return float(value)


def _text(value: Any) -> str:
    """A text that somebody else chose, fit for one line."""
    text: str = _is(value, str, "a text")
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_TEXT]).split())[:MAX_TEXT]
