"""Reads journals into a timeline.

Silence is never filled in: where the node wrote nothing for `SILENT_S`, there is a gap that says what is known of it.
Lines that are torn, of another version or of another form are counted and left out. A line of an unknown kind is a sign of
life and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any, Final

import msgspec

from states.ending import EndingKind
from states.formatting import elapsed
from states.guards import SAFE
from states.limits import Limits
from states.memory import Memory, State
from states.table import BY_ID
from supervisor.journal import decision_log
from supervisor.journal.codec import EVER_S, observation_of
from supervisor.linux.text import one_line
from supervisor.tools.history.timeline.endings import ending_of
from supervisor.tools.history.timeline.spans import (
    GAP,
    Cause,
    KeptSpan,
    PersonSpan,
    PersonState,
    Point,
    Span,
    TaskOutcome,
    TaskSpan,
    Timeline,
)

MAX_TEXT: Final = 1000
SILENT_S: Final = 180.0
# A sign of life comes every minute and a half at most: with a sign as young as this, the person is still here.
HERE_S: Final = 95.0
_OUTCOMES: Final = {
    EndingKind.SUCCEEDED: TaskOutcome.DONE,
    EndingKind.FAILED: TaskOutcome.FAILED,
    EndingKind.TIMED_OUT: TaskOutcome.FAILED,
    EndingKind.HANDED_BACK: TaskOutcome.HANDED_BACK,
}
_BY_STATE: Final = {State.DISABLED: Cause.OFF, State.COOLDOWN: Cause.COOLDOWN}
_BY_GUARD: Final = {"user_away": Cause.PERSON, "gpu_free": Cause.GPU, "cpu_free": Cause.CPU, "host_fit": Cause.HOST}
_TO_GO = re.compile(r", [^,]* to go$")
_DIGITS = re.compile(r"\d[\d.]*")


class TimelineError(Exception):
    """There is nothing to draw; the text says why and what to do."""


def load(paths: Iterable[Path], days: int) -> Timeline:
    """The last `days` local days in the journals.

    Raises:
        TimelineError: no line can be used.
        OSError: a journal cannot be read.
    """
    reader = _Reader()
    for path in decision_log.files(paths):
        before = 0
        for number, entry in decision_log.read(path):
            reader.timeline.left_out += number - before - 1
            before = number
            reader.take(entry)
    whole = reader.whole()
    if not whole.spans:
        raise TimelineError("no line shows what a node did; name journals (decisions-*.jsonl) or a folder of them")
    return whole.last(days)


class _Reader:
    def __init__(self) -> None:
        self.timeline = Timeline()
        self._first = True
        self._at = 0.0  # of the last line
        self._boot_s = 0.0
        self._zero = 0.0  # of the clock since boot
        self._kind = ""
        self._reason = ""  # of the last stop
        self._span: Span | None = None
        self._reasons: Counter[str] = Counter()  # of the span, by their text without digits
        self._sample: dict[str, str] = {}  # the last text of each
        self._task: TaskSpan | None = None
        self._decision: dict[str, Any] = {}
        self._took_s = 0.0
        self._causes: tuple[Cause, ...] = ()
        self._kept_from = 0.0
        self._kept: dict[Cause, KeptSpan] = {}  # the last of each
        self._sign: tuple[float, float | None] | None = None  # (moment of the look, the last sign); None: nothing seen

    def take(self, entry: Mapping[str, Any]) -> None:
        try:
            at, boot_s = datetime.fromisoformat(entry["time"]).timestamp(), float(entry["boot_s"])
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            self.timeline.left_out += 1
            return
        # The stamp has whole seconds, the clock since boot has more digits: the stamp places one on the other.
        if not abs(self._zero + boot_s - at) <= 1.01:
            self._zero = at - boot_s
        at = self._zero + boot_s
        self._pass(at, boot_s, entry)
        self._keep(at)
        self._at, self._boot_s, self._kind = at, boot_s, entry["kind"]
        try:
            if not self.timeline.limits and "carried" in entry:
                self._config(at, entry["carried"])
            match entry["kind"]:
                case "start":
                    self._start(at, entry)
                case "stop":
                    self._reason = _text(entry.get("reason", ""))
                    self.timeline.mark(at, "stop", f"node stopped: {self._reason}")
                case "decision":
                    self._decide(at, entry)
                case "effect":
                    self._effect(at, entry)
                case "alive":
                    self._alive(at, entry)
                case "config":
                    self._config(at, entry)
                case "operator":
                    until = f" until {_text(entry['until'])}" if entry.get("until") else ""
                    self.timeline.mark(at, "operator", f"{_text(entry['word'])}{until}")
                case "link" if entry.get("event") in ("up", "down", "lost"):
                    why = f": {_text(entry['reason'])}" if entry.get("reason") else ""
                    self.timeline.mark(at, "link", f"control node {entry['event']}{why}")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self.timeline.left_out += 1

    def whole(self) -> Timeline:
        """After the last line: what is open ends with it, and everything is put in order of its begin."""
        t = self.timeline
        if self._task is not None:
            self._task.end = self._at
            t.tasks.append(self._task)
        self._close(self._at)
        for spans in (t.spans, t.tasks, t.person, t.kept):
            spans.sort(key=lambda s: s.begin)
        t.points.sort(key=lambda p: p.at)
        t.marks.sort(key=lambda m: m.at)
        if t.spans:
            t.begin, t.end = t.spans[0].begin, max(s.end for s in t.spans)
        t.limits = t.limits or [(t.begin, Limits())]
        return t

    # --- time that passes

    def _pass(self, at: float, boot_s: float, entry: Mapping[str, Any]) -> None:
        """From the last line to this one: silence is a gap."""
        if self._first:
            self._first = False
            return
        silent = at - self._at > SILENT_S
        if at < self._at - 1:
            self.timeline.mark(at, "clock", f"the clock was set back by {elapsed(self._at - at)}")
        if not (silent or entry["kind"] in ("start", "gap") or self._kind == "stop"):
            return
        self._close(self._at)
        if at > self._at:
            self.timeline.spans.append(Span(self._at, at, GAP, self._why_gap(boot_s, entry)))
        if self._task is not None and entry["kind"] != "gap" and boot_s < self._boot_s:
            self._end_task(self._at, TaskOutcome.LOST, "the node was gone before its end")

    def _why_gap(self, boot_s: float, entry: Mapping[str, Any]) -> str:
        if entry["kind"] == "gap":
            return f"{_text(entry.get('lost', '?'))} lines lost: {_text(entry.get('why', ''))}"
        if self._kind == "stop":
            return f"node not running: {self._reason}" if self._reason else "node not running"
        if boot_s < self._boot_s:
            return "no record: the machine went off without notice"
        if entry["kind"] == "start":
            return "no record: the node ended without notice"
        return "no record: asleep, or hung"

    def _close(self, at: float) -> None:
        """Nothing is known from here on."""
        self._keep(at)
        self._causes = ()
        self._enter(at, "", "")
        self._look(at, None)
        self._sign = None
        points = self.timeline.points
        if points and points[-1].cpu is not None:
            points.append(Point(at + 1))

    # --- states

    def _enter(self, at: float, state: str, why: str) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end, span.left = at, why
            span.reasons = tuple(self._sample[key] for key, _ in self._reasons.most_common(3))
            if span.end > span.begin:
                self.timeline.spans.append(span)
        self._reasons.clear()
        self._sample.clear()
        if state:
            self._span = Span(at, at, state, why)

    def _start(self, at: float, entry: Mapping[str, Any]) -> None:
        self.timeline.version = _text(entry.get("version", ""))
        self.timeline.mark(at, "start", f"node started, version {self.timeline.version}")
        self._end_task(at, TaskOutcome.LOST, "the node was restarted")
        self._enter(at, State.DISABLED, "node started")

    def _alive(self, at: float, entry: Mapping[str, Any]) -> None:
        state = _text(entry["state"])
        if self._span is None or self._span.state != state:
            self._enter(at, state, "")
        reason = _TO_GO.sub("", _text(entry.get("reason", "")).removeprefix(f"{state}: "))
        if reason:  # reasons that differ in numbers alone are one
            key = _DIGITS.sub("0", reason)
            self._reasons[key] += 1
            self._sample[key] = reason
        self._observe(at, entry)

    def _decide(self, at: float, entry: Mapping[str, Any]) -> None:
        source, _ = _text(entry["from"]), entry["to"]
        self._decision, self._took_s = dict(entry), 0.0
        self._observe(at, entry)
        if self._span is None:
            self._enter(at, source, "")
        if "state" in entry:
            self._move(at, _text(entry["state"]), entry)

    def _move(self, at: float, state: str, decision: Mapping[str, Any]) -> None:
        row = None if decision.get("row") is None else _text(decision["row"])
        if row is None or self._span is None or state == self._span.state:
            return
        reason = _text(decision.get("reason") or (BY_ID[row].why if row in BY_ID else ""))
        self._enter(at, state, f"{row}: {reason}" if reason else row)

    # --- tasks

    def _effect(self, at: float, entry: Mapping[str, Any]) -> None:
        decision = self._decision if self._decision.get("tick") == entry["tick"] else {}
        self._took_s += float(entry.get("took_s") or 0.0)
        about, name, ok = decision.get("task") or {}, entry["effect"], entry["ok"] is True
        row = _text(decision.get("row") or "")
        if name == "start":
            why = "" if ok else _text(entry.get("detail", ""))
            self._task = TaskSpan(at, at, _text(about.get("id", "")), _text(about.get("type", "")), why=why)
        elif name == "stop" and ok and self._task is not None:
            user = decision["observation"].get("user")
            if row == "user-returned" and isinstance(user, dict):
                self._task.reaction_s = float(user["idle"]) + self._took_s
        elif name in ("settle", "hand_back") and ok:
            kind, why = ending_of(entry)
            if kind is EndingKind.HANDED_BACK:
                why = str(decision.get("reason") or why)
            self._end_task(at, _OUTCOMES[kind], _text(why), row)
        if "state" in entry and decision:
            self._move(at, _text(entry["state"]), decision)

    def _end_task(self, at: float, outcome: TaskOutcome, why: str, row: str = "") -> None:
        task, self._task = self._task, None
        if task is not None:
            task.end, task.outcome, task.why, task.row = at, outcome, why or task.why, row
            self.timeline.tasks.append(task)

    # --- what was seen

    def _config(self, at: float, entry: Mapping[str, Any]) -> None:
        known = self.timeline.limits
        if "problem" in entry:
            self.timeline.mark(at, "config", f"configuration refused: {_text(entry['problem'])}")
        elif "limits" in entry:
            limits = msgspec.convert(entry["limits"], Limits)
            if known and known[-1][1] != limits:
                self.timeline.mark(at, "config", "other limits")
            if not known or known[-1][1] != limits:
                known.append((at, limits))

    def _observe(self, at: float, entry: Mapping[str, Any]) -> None:
        seen = entry.get("observation")
        if not isinstance(seen, dict):
            return
        user, gpu, cpu, stale = seen.get("user"), seen.get("gpu"), seen.get("cpu"), seen.get("stale", ())
        idle = _number(user.get("idle")) if isinstance(user, dict) and "user" not in stale else None
        self._look(at, None if idle is None else at - min(idle, EVER_S))
        self._causes = self._causes_now(float(entry["boot_s"]), entry)
        reading = gpu if isinstance(gpu, dict) and "gpu" not in stale else {}
        values = (None if "cpu" in stale else cpu, reading.get("percent"), reading.get("vram_gb"))
        self.timeline.points.append(Point(at, *map(_number, values)))

    def _causes_now(self, boot_s: float, entry: Mapping[str, Any]) -> tuple[Cause, ...]:
        """What keeps the node from working from this line on."""
        state = _text(entry.get("state") or entry.get("to") or "")
        if state in _BY_STATE:
            return (_BY_STATE[State(state)],)
        if state == State.READY:
            return (Cause.NO_TASK if entry["observation"].get("link") == "up" else Cause.LINK,)
        if state != State.IDLE_WAIT:
            return ()
        limits = self.timeline.limits[-1][1] if self.timeline.limits else Limits()
        try:
            observation = observation_of(entry["observation"], boot_s)
        except ValueError:
            return ()
        return tuple(_BY_GUARD[guard.name] for guard in SAFE if guard.judge(observation, Memory(), limits) is not True)

    def _keep(self, at: float) -> None:
        """The causes have held up to now."""
        before, self._kept_from = self._kept_from, at
        for cause in self._causes:
            last = self._kept.get(cause)
            if last is not None and abs(last.end - before) < 1e-3:
                last.end = at
            elif at > before:
                self._kept[cause] = last = KeptSpan(before, at, cause)
                self.timeline.kept.append(last)

    def _look(self, at: float, sign: float | None) -> None:
        """From the last look to this one the person's last sign ages; a newer sign began somewhere in between."""
        before, self._sign = self._sign, (at, sign)
        if before is None:
            return
        now, last = before
        if last is None:
            self._person(now, at, PersonState.UNSEEN)
            return
        limits = self.timeline.limits[-1][1] if self.timeline.limits else Limits()
        for state, until in (
            (PersonState.HERE, last + HERE_S),
            (PersonState.LEFT, last + limits.idle_required_s),
            (PersonState.AWAY, float("inf")),
        ):
            end = min(at, until)
            if end > now:
                self._person(now, end, state)
                now = end

    def _person(self, begin: float, end: float, state: PersonState) -> None:
        last = self.timeline.person[-1] if self.timeline.person else None
        if last is not None and last.state is state and abs(last.end - begin) < 1e-3:
            last.end = end
        elif end > begin:
            self.timeline.person.append(PersonSpan(begin, end, state))


def _text(value: Any) -> str:
    """A text of the journal on one line, without what a terminal or a page would obey."""
    return one_line(str(value), MAX_TEXT)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else None
