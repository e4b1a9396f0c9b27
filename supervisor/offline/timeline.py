"""What a journal tells of some days: states, tasks, the person, readings, and what is missing (R16).

Rules of this file: times are seconds since the epoch, as the node stamped them; silence is never filled in: where the
node wrote nothing for `SILENT_S` there is a gap that says what is known of it. Lines that are torn, of another version
or of another form are counted and left out. Drawing is in timeline_svg, timeline_html and timeline_text.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from states.limits import Limits
from states.memory import State
from states.table import BY_ID
from states.words import elapsed
from supervisor import journal
from supervisor.vocabulary import EVER_S

SILENT_S: Final = 180.0
# A sign of life comes every minute and a half at most: a sign as young as this is somebody at the machine.
HERE_S: Final = 95.0
GAP: Final = "GAP"
HERE, LEFT, AWAY, UNSEEN = "here", "just left", "away", "unknown"
_DIGITS = re.compile(r"\d[\d.]*")
_TO_GO = re.compile(r", [^,]* to go$")


class TimelineError(Exception):
    """There is nothing to draw; the text says why and what to do."""


@dataclass(slots=True)
class Span:
    """A stay in a state, or a gap (`state` GAP): what led here, what ended it, and what was said meanwhile."""

    begin: float
    end: float
    state: str
    why: str = ""
    left: str = ""
    words: tuple[str, ...] = ()


@dataclass(slots=True)
class TaskSpan:
    """A task from its start to its end. `outcome`: done, failed, handed back, lost, or running; `why` in words."""

    begin: float
    end: float
    id: str
    type: str
    outcome: str = "running"
    why: str = ""
    row: str = ""
    reaction_s: float | None = None  # from the person's sign to no process left


@dataclass(slots=True)
class PersonSpan:
    """The person as the node saw them: here, just left (not away for long enough), away, unknown."""

    begin: float
    end: float
    kind: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """Readings at a moment: percent, percent, GiB; None: unknown, absent, or the end of a stretch."""

    at: float
    cpu: float | None = None
    gpu: float | None = None
    vram: float | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment: start, stop, operator, link, config, clock."""

    at: float
    kind: str
    words: str


@dataclass(slots=True)
class Summary:
    """Sums in hours; reactions in seconds, from the person's sign to the decision, and to no process left."""

    recorded_h: float = 0.0
    gap_h: float = 0.0
    states_h: dict[str, float] = field(default_factory=dict)
    given_h: float = 0.0
    here_h: float = 0.0
    away_h: float = 0.0
    done: int = 0
    failed: int = 0
    lost: int = 0
    handed_back: dict[str, int] = field(default_factory=dict)
    reactions_s: list[float] = field(default_factory=list)

    @property
    def preempted(self) -> int:
        """Tasks that were given back before their end."""
        return sum(self.handed_back.values())

    @property
    def reaction_words(self) -> str:
        """Median and worst, with how many there were."""
        if not self.reactions_s:
            return "nobody came back to a task"
        worst, count = max(self.reactions_s), len(self.reactions_s)
        return f"median {quick(median(self.reactions_s))}, worst {quick(worst)}, {count} {'time' if count == 1 else 'times'}"


@dataclass(slots=True)
class Timeline:
    """Everything from `begin` to `end`, in order. `limits`: (since, limits) pairs; `left_out`: lines that say nothing."""

    begin: float
    end: float
    spans: list[Span]
    tasks: list[TaskSpan]
    person: list[PersonSpan]
    points: list[Point]
    marks: list[Mark]
    limits: list[tuple[float, Limits]]
    left_out: int = 0
    version: str = ""

    def days(self) -> list[tuple[float, float]]:
        """Local days, from midnight to midnight: 23 or 25 hours where the clock changes."""
        days = []
        day = midnight(self.begin)
        while day < self.end:
            following = midnight(day + 6 * 3600, 1)  # where midnight is skipped it lies in the day before
            days.append((day, following))
            day = following
        return days

    def between(self, begin: float, end: float) -> Timeline:
        """What lies in a part of the time; spans are cut at its ends."""
        return replace(
            self,
            begin=max(begin, self.begin),
            end=min(end, self.end),
            spans=_cut(self.spans, begin, end),
            tasks=_cut(self.tasks, begin, end),
            person=_cut(self.person, begin, end),
            points=[p for p in self.points if begin <= p.at and (p.at < end or end >= self.end)],
            marks=[m for m in self.marks if begin <= m.at and (m.at < end or end >= self.end)],
            limits=[since for n, since in enumerate(self.limits) if self._in_force(n, begin, end)],
        )

    def _in_force(self, n: int, begin: float, end: float) -> bool:
        """The n-th limits hold somewhere in this part; before the first line the first ones do."""
        following = self.limits[n + 1][0] if n + 1 < len(self.limits) else float("inf")
        return following > begin and (n == 0 or self.limits[n][0] < end)

    def summary(self) -> Summary:
        """The sums. A task counts on the day of its end."""
        s = Summary()
        for span in self.spans:
            hours = (span.end - span.begin) / 3600
            if span.state == GAP:
                s.gap_h += hours
            else:
                s.recorded_h += hours
                s.states_h[span.state] = s.states_h.get(span.state, 0.0) + hours
        for person in self.person:
            hours = (person.end - person.begin) / 3600
            s.here_h += hours * (person.kind in (HERE, LEFT))
            s.away_h += hours * (person.kind == AWAY)
        for task in self.tasks:
            s.given_h += (task.end - task.begin) / 3600
            if task.end >= self.end:
                continue  # it goes on, or ends on another day
            s.done += task.outcome == "done"
            s.failed += task.outcome == "failed"
            s.lost += task.outcome == "lost"
            if task.outcome == "handed back":
                s.handed_back[task.row] = s.handed_back.get(task.row, 0) + 1
            if task.reaction_s is not None:
                s.reactions_s.append(task.reaction_s)
        return s


def _cut(spans: list[Any], begin: float, end: float) -> list[Any]:
    return [
        s if begin <= s.begin and s.end <= end else replace(s, begin=max(begin, s.begin), end=min(end, s.end))
        for s in spans
        if s.begin < end and (s.end > begin or s.begin >= begin)
    ]


def midnight(at: float, days: int = 0) -> float:
    """The local midnight of the day of `at`, or of so many days later."""
    local = time.localtime(at)
    return time.mktime((local.tm_year, local.tm_mon, local.tm_mday + days, 0, 0, 0, 0, 0, -1))


def quick(seconds: float) -> str:
    """A reaction: milliseconds, or seconds with one decimal."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 100 else elapsed(seconds)


def load(paths: Iterable[Path], days: int) -> Timeline:
    """The last `days` local days that the journals know of.

    Raises:
        TimelineError: no line says anything.
        OSError: a journal cannot be read.
    """
    reader = _Reader()
    for path in journal.files(paths):
        before = 0
        for number, entry in journal.read(path):
            reader.left_out += number - before - 1
            before = number
            reader.take(entry)
    whole = reader.finish()
    if whole is None:
        raise TimelineError("no line tells of a node; name journals (decisions-*.jsonl) or a folder of them")
    return whole.between(midnight(whole.end - 1e-3, 1 - days), whole.end)


class _Reader:
    """Lines in, spans out. A line of a kind that is not known here is a sign of life and nothing else."""

    def __init__(self) -> None:
        self.left_out = 0
        self._spans: list[Span] = []
        self._tasks: list[TaskSpan] = []
        self._person: list[PersonSpan] = []
        self._points: list[Point] = []
        self._marks: list[Mark] = []
        self._limits: list[tuple[float, Limits]] = []
        self._version = ""
        self._first: float | None = None
        self._at = 0.0  # of the last line
        self._boot_s = 0.0
        self._zero = 0.0  # of the clock since boot
        self._kind = ""
        self._reason = ""  # of the last stop
        self._span: Span | None = None
        self._said: Counter[str] = Counter()
        self._sample: dict[str, str] = {}
        self._task: TaskSpan | None = None
        self._decision: dict[str, Any] = {}
        self._took_s = 0.0
        self._sign: tuple[float, float | None] | None = None  # (when it was looked, the last sign); None: nothing seen

    def take(self, entry: Mapping[str, Any]) -> None:
        """One line."""
        try:
            at, boot_s = datetime.fromisoformat(entry["time"]).timestamp(), float(entry["boot_s"])
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            self.left_out += 1
            return
        # The stamp is to the second, the clock since boot is not: the stamp says where the one lies on the other.
        if not abs(self._zero + boot_s - at) <= 1.01:
            self._zero = at - boot_s
        at = self._zero + boot_s
        self._pass(at, boot_s, entry)
        self._at, self._boot_s, self._kind = at, boot_s, entry["kind"]
        try:
            match entry["kind"]:
                case "start":
                    self._start(at, entry)
                case "stop":
                    self._reason = _text(entry.get("reason", ""))
                    self._marks.append(Mark(at, "stop", f"node stopped: {self._reason}"))
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
                    self._marks.append(Mark(at, "operator", f"{_text(entry['word'])}{until}"))
                case "link" if entry.get("event") in ("up", "down", "lost"):
                    why = f": {_text(entry['reason'])}" if entry.get("reason") else ""
                    self._marks.append(Mark(at, "link", f"control node {entry['event']}{why}"))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self.left_out += 1

    # --- time that passes

    def _pass(self, at: float, boot_s: float, entry: Mapping[str, Any]) -> None:
        """From the last line to this one: silence is a gap."""
        if self._first is None:
            self._first = at
            return
        silent = at - self._at > SILENT_S
        if at < self._at - 1:
            self._marks.append(Mark(at, "clock", f"the clock was set back by {elapsed(self._at - at)}"))
        if not (silent or entry["kind"] in ("start", "gap") or self._kind == "stop"):
            return
        self._close(self._at)
        if at > self._at:
            self._spans.append(Span(self._at, at, GAP, self._why_gap(at, boot_s, entry)))
        if self._task is not None and entry["kind"] != "gap" and boot_s < self._boot_s:
            self._end_task(self._at, "lost", "the node was gone before its end")

    def _why_gap(self, at: float, boot_s: float, entry: Mapping[str, Any]) -> str:
        if entry["kind"] == "gap":
            return f"{_text(entry.get('lost', '?'))} lines lost: {_text(entry.get('why', ''))}"
        if self._kind == "stop":
            return f"node not running: {self._reason}" if self._reason else "node not running"
        if boot_s < self._boot_s:
            return "no record: the machine went off without a word"
        if entry["kind"] == "start":
            return "no record: the node ended without a word"
        return "no record: asleep, or hung"

    def _close(self, at: float) -> None:
        """Nothing is known from here on."""
        self._enter(at, "", "")
        self._look(at, None)
        self._sign = None
        if self._points and self._points[-1].cpu is not None:
            self._points.append(Point(at + 1))

    # --- states

    def _enter(self, at: float, state: str, why: str) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end, span.left, span.words = at, why, self._words()
            if span.end > span.begin:
                self._spans.append(span)
        self._said.clear()
        self._sample.clear()
        if state:
            self._span = Span(at, at, state, why)

    def _words(self) -> tuple[str, ...]:
        """What the signs of life said, the most frequent first; texts that differ in numbers alone are one."""
        return tuple(self._sample[key] for key, _ in self._said.most_common(3))

    def _start(self, at: float, entry: Mapping[str, Any]) -> None:
        self._version = _text(entry.get("version", ""))
        self._marks.append(Mark(at, "start", f"node started, version {self._version}"))
        if self._task is not None:
            self._end_task(at, "lost", "the node was restarted")
        self._enter(at, State.DISABLED, "node started")

    def _alive(self, at: float, entry: Mapping[str, Any]) -> None:
        state = _text(entry["state"])
        if self._span is None or self._span.state != state:
            self._enter(at, state, "")
        text = _TO_GO.sub("", _text(entry.get("reason", "")).removeprefix(f"{state}: "))
        if text:
            key = _DIGITS.sub("0", text)
            self._said[key] += 1
            self._sample[key] = text
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
        if row is None or self._span is None or (state == self._span.state and state != decision.get("to")):
            return
        reason = _text(decision.get("reason") or (BY_ID[row].why if row in BY_ID else ""))
        if state != self._span.state:
            self._enter(at, state, f"{row}: {reason}" if reason else row)

    # --- tasks

    def _effect(self, at: float, entry: Mapping[str, Any]) -> None:
        decision = self._decision if self._decision.get("tick") == entry["tick"] else {}
        self._took_s += float(entry.get("took_s") or 0.0)
        about, name, ok = decision.get("task") or {}, entry["effect"], entry["ok"] is True
        row = _text(decision.get("row") or "")
        detail = _text(entry.get("detail", ""))
        if name == "start":
            self._task = TaskSpan(at, at, _text(about.get("id", "")), _text(about.get("type", "")))
            if not ok:
                self._task.why = detail
        elif name == "stop" and ok and self._task is not None:
            self._task.reaction_s = self._reaction_s(row, decision)
        elif name == "settle" and ok:
            why = detail.removeprefix("failed: ") if detail != "succeeded" else ""
            self._end_task(at, "done" if detail == "succeeded" else "failed", why, row)
        elif name == "hand_back" and ok:
            self._end_task(at, "handed back", _text(decision.get("reason") or detail), row)
        if "state" in entry and decision:
            self._move(at, _text(entry["state"]), decision)

    def _reaction_s(self, row: str, decision: Mapping[str, Any]) -> float | None:
        """From the sign that the decision saw to the end of the stop. None: it was not the person, or no sign is known."""
        user = decision["observation"].get("user")
        return float(user["idle"]) + self._took_s if row == "user-returned" and isinstance(user, dict) else None

    def _end_task(self, at: float, outcome: str, why: str, row: str = "") -> None:
        task, self._task = self._task, None
        if task is not None:
            task.end, task.outcome, task.why, task.row = at, outcome, why or task.why, row
            self._tasks.append(task)

    # --- what was seen

    def _config(self, at: float, entry: Mapping[str, Any]) -> None:
        if "problem" in entry:
            self._marks.append(Mark(at, "config", f"configuration refused: {_text(entry['problem'])}"))
        elif "limits" in entry:
            limits = msgspec.convert(entry["limits"], Limits)
            if self._limits and self._limits[-1][1] != limits:
                self._marks.append(Mark(at, "config", "other limits"))
            if not self._limits or self._limits[-1][1] != limits:
                self._limits.append((at, limits))

    def _observe(self, at: float, entry: Mapping[str, Any]) -> None:
        seen = entry.get("observation")
        if not isinstance(seen, dict):
            return
        user, gpu, cpu, stale = seen.get("user"), seen.get("gpu"), seen.get("cpu"), seen.get("stale", ())
        idle = _number(user.get("idle")) if isinstance(user, dict) and "user" not in stale else None
        self._look(at, None if idle is None else at - min(idle, EVER_S))
        reading = gpu if isinstance(gpu, dict) and "gpu" not in stale else {}
        self._points.append(
            Point(at, *(_number(v) for v in (None if "cpu" in stale else cpu, reading.get("percent"), reading.get("vram_gb"))))
        )

    def _look(self, at: float, sign: float | None) -> None:
        """From the last look to this one the person's last sign ages; a newer sign began somewhere in between."""
        before, self._sign = self._sign, (at, sign)
        if before is None:
            return
        now, last = before
        if last is None:
            self._be(now, at, UNSEEN)
            return
        required_s = self._limits[-1][1].idle_required_s if self._limits else Limits().idle_required_s
        for kind, until in ((HERE, last + HERE_S), (LEFT, last + required_s), (AWAY, float("inf"))):
            end = min(at, until)
            if end > now:
                self._be(now, end, kind)
                now = end

    def _be(self, begin: float, end: float, kind: str) -> None:
        last = self._person[-1] if self._person else None
        if last is not None and last.kind == kind and abs(last.end - begin) < 1e-3:
            last.end = end
        elif end > begin:
            self._person.append(PersonSpan(begin, end, kind))

    def finish(self) -> Timeline | None:
        """What there is; None: no line said anything."""
        if self._first is None:
            return None
        if self._task is not None:
            self._task.end = self._at
            self._tasks.append(self._task)
        self._close(self._at)
        spans = sorted(self._spans, key=lambda s: s.begin)
        if not spans:
            return None
        begin, end = spans[0].begin, max(s.end for s in spans)
        return Timeline(
            begin,
            end,
            spans,
            sorted(self._tasks, key=lambda t: t.begin),
            sorted(self._person, key=lambda p: p.begin),
            sorted(self._points, key=lambda p: p.at),
            sorted(self._marks, key=lambda m: m.at),
            self._limits or [(begin, Limits())],
            self.left_out,
            self._version,
        )


def _text(value: Any) -> str:
    """A text of the journal on one line, without what a terminal or a page would obey."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else None


# --- words that every form of the timeline uses


def clock(at: float) -> str:
    """The local time of day, to the minute."""
    return time.strftime("%H:%M", time.localtime(at))


def date(at: float) -> str:
    """A local day, such as Mon 5 Oct 2026."""
    local = time.localtime(at)
    return time.strftime("%a ", local) + str(local.tm_mday) + time.strftime(" %b %Y", local)


def hours(value: float) -> str:
    """Hours for people: `40 min`, `5 h 12 min`, `328 h`."""
    return elapsed(value * 3600) if value < 24 else f"{value:.0f} h"


def span_words(span: Span, tasks: Iterable[TaskSpan] = ()) -> str:
    """A span in lines: what, when, why it was entered, what was said, and what ended it."""
    name = "no record" if span.state == GAP else span.state
    lines = [f"{name}, {clock(span.begin)} to {clock(span.end)} ({elapsed(span.end - span.begin)})"]
    if span.why:
        lines.append(span.why if span.state == GAP else f"because {span.why}")
    if span.state != State.RUNNING:
        lines += [f"said: {text}" for text in span.words]
    inside = [t for t in tasks if t.begin < span.end and t.end > span.begin]
    counts = Counter(t.outcome for t in inside)
    if inside:
        told = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        lines.append(f"{len(inside)} {'task' if len(inside) == 1 else 'tasks'}: {told}")
    if span.left:
        lines.append(f"until {span.left}")
    return "\n".join(lines)


def task_words(task: TaskSpan) -> str:
    """A task in lines."""
    name = f"{task.type or 'task'} {short(task.id)}".rstrip()
    lines = [f"{name}: {task.outcome}, {clock(task.begin)} to {clock(task.end)} ({elapsed(task.end - task.begin)})"]
    if task.why:
        lines.append(task.why)
    if task.reaction_s is not None:
        lines.append(f"gone {quick(task.reaction_s)} after the person's sign")
    return "\n".join(lines)


def person_words(span: PersonSpan) -> str:
    """The person in lines."""
    words = {HERE: "somebody is here", LEFT: "just left, not away for long enough", AWAY: "nobody here", UNSEEN: "not known"}
    return f"{words[span.kind]}, {clock(span.begin)} to {clock(span.end)} ({elapsed(span.end - span.begin)})"


def day_words(part: Timeline) -> str:
    """A day's sums in a line."""
    s = part.summary()
    told = [f"{hours(s.given_h)} given", f"{s.done} done"]
    told += [f"{s.failed} failed"] if s.failed else []
    told += [f"{s.preempted} handed back"] if s.preempted else []
    told += [f"{s.lost} lost"] if s.lost else []
    told += [f"no record of {hours(s.gap_h)}"] if s.gap_h > 0.05 else []
    return ", ".join(told)


def summary_rows(timeline: Timeline) -> list[tuple[str, str]]:
    """The summary as (name, value), for every form."""
    s = timeline.summary()
    share = f" ({100 * s.given_h / s.recorded_h:.0f} % of the time on record)" if s.recorded_h else ""
    states = ", ".join(f"{state} {hours(s.states_h[state])}" for state in State if s.states_h.get(state, 0) > 0)
    back = ", ".join(f"{n} by {row or 'no row'}" for row, n in sorted(s.handed_back.items(), key=lambda p: -p[1]))
    rows = [
        ("Given to tasks", hours(s.given_h) + share),
        ("Tasks done", f"{s.done}" + (f", {s.failed} failed" if s.failed else "") + (f", {s.lost} lost" if s.lost else "")),
        ("Handed back", f"{s.preempted}" + (f": {back}" if back else "")),
        ("From sign to no process", s.reaction_words),
        ("Person at the machine", f"{hours(s.here_h)}; away {hours(s.away_h)}"),
        ("States", states),
        ("No record", hours(s.gap_h) if s.gap_h > 0.01 else "none missing"),
    ]
    if timeline.left_out:
        rows.append(("Lines left out", f"{timeline.left_out}: torn, or of another version or form"))
    return rows


def short(task_id: str) -> str:
    """Enough of an id to tell tasks apart."""
    return f"{task_id[:8]}…" if len(task_id) > 12 else task_id


def gaps(timeline: Timeline) -> Iterator[Span]:
    """What is missing."""
    return (span for span in timeline.spans if span.state == GAP)


def steps(timeline: Timeline) -> Iterator[tuple[float, float, Limits]]:
    """(from, to, limits in force)."""
    pairs = [*timeline.limits, (timeline.end, timeline.limits[-1][1])]
    for n, ((begin, limits), (end, _)) in enumerate(pairwise(pairs)):
        yield (timeline.begin if n == 0 else begin), end, limits
