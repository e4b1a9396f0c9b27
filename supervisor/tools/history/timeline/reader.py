"""Reading a journal for its timeline: lines in, spans out (R16).

Rules of this file: silence is never filled in: where the node wrote nothing for `SILENT_S` there is a gap that says what
is known of it. Lines that are torn, of another version or of another form are counted and left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Any, Final

import msgspec

from states.ending import EndingKind
from states.limits import Limits
from states.memory import State
from states.table import BY_ID
from states.words import elapsed
from supervisor.journal.codec import EVER_S
from supervisor.linux.text import one_line
from supervisor.tools.history.timeline.endings import ending_of
from supervisor.tools.history.timeline.spans import AWAY, GAP, HERE, LEFT, UNSEEN, Mark, PersonSpan, Point, Span, TaskSpan

MAX_TEXT: Final = 1000
SILENT_S: Final = 180.0
# A sign of life comes every minute and a half at most: a sign as young as this is somebody at the machine.
HERE_S: Final = 95.0
_DIGITS = re.compile(r"\d[\d.]*")
_OUTCOMES: Final = {
    EndingKind.SUCCEEDED: "done",
    EndingKind.FAILED: "failed",
    EndingKind.TIMED_OUT: "failed",
    EndingKind.HANDED_BACK: "handed back",
}
_TO_GO = re.compile(r", [^,]* to go$")


class Reader:
    """Lines in, spans out. A line of a kind that is not known here is a sign of life and nothing else.

    `limits`: (since, limits) pairs; `left_out`: lines that say nothing; `version`: of the node that wrote last.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self.spans: list[Span] = []
        self.tasks: list[TaskSpan] = []
        self.person: list[PersonSpan] = []
        self.points: list[Point] = []
        self.marks: list[Mark] = []
        self.limits: list[tuple[float, Limits]] = []
        self.version = ""
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
            if not self.limits and "carried" in entry:
                self._config(at, entry["carried"])
            match entry["kind"]:
                case "start":
                    self._start(at, entry)
                case "stop":
                    self._reason = _text(entry.get("reason", ""))
                    self.marks.append(Mark(at, "stop", f"node stopped: {self._reason}"))
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
                    self.marks.append(Mark(at, "operator", f"{_text(entry['word'])}{until}"))
                case "link" if entry.get("event") in ("up", "down", "lost"):
                    why = f": {_text(entry['reason'])}" if entry.get("reason") else ""
                    self.marks.append(Mark(at, "link", f"control node {entry['event']}{why}"))
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
            self.marks.append(Mark(at, "clock", f"the clock was set back by {elapsed(self._at - at)}"))
        if not (silent or entry["kind"] in ("start", "gap") or self._kind == "stop"):
            return
        self._close(self._at)
        if at > self._at:
            self.spans.append(Span(self._at, at, GAP, self._why_gap(at, boot_s, entry)))
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
        if self.points and self.points[-1].cpu is not None:
            self.points.append(Point(at + 1))

    # --- states

    def _enter(self, at: float, state: str, why: str) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end, span.left, span.words = at, why, self._words()
            if span.end > span.begin:
                self.spans.append(span)
        self._said.clear()
        self._sample.clear()
        if state:
            self._span = Span(at, at, state, why)

    def _words(self) -> tuple[str, ...]:
        """What the signs of life said, the most frequent first; texts that differ in numbers alone are one."""
        return tuple(self._sample[key] for key, _ in self._said.most_common(3))

    def _start(self, at: float, entry: Mapping[str, Any]) -> None:
        self.version = _text(entry.get("version", ""))
        self.marks.append(Mark(at, "start", f"node started, version {self.version}"))
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
        elif name in ("settle", "hand_back") and ok:
            kind, remark = ending_of(entry)
            if kind is EndingKind.HANDED_BACK:
                remark = str(decision.get("reason") or remark)
            self._end_task(at, _OUTCOMES[kind], _text(remark), row)
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
            self.tasks.append(task)

    # --- what was seen

    def _config(self, at: float, entry: Mapping[str, Any]) -> None:
        if "problem" in entry:
            self.marks.append(Mark(at, "config", f"configuration refused: {_text(entry['problem'])}"))
        elif "limits" in entry:
            limits = msgspec.convert(entry["limits"], Limits)
            if self.limits and self.limits[-1][1] != limits:
                self.marks.append(Mark(at, "config", "other limits"))
            if not self.limits or self.limits[-1][1] != limits:
                self.limits.append((at, limits))

    def _observe(self, at: float, entry: Mapping[str, Any]) -> None:
        seen = entry.get("observation")
        if not isinstance(seen, dict):
            return
        user, gpu, cpu, stale = seen.get("user"), seen.get("gpu"), seen.get("cpu"), seen.get("stale", ())
        idle = _number(user.get("idle")) if isinstance(user, dict) and "user" not in stale else None
        self._look(at, None if idle is None else at - min(idle, EVER_S))
        reading = gpu if isinstance(gpu, dict) and "gpu" not in stale else {}
        self.points.append(
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
        required_s = self.limits[-1][1].idle_required_s if self.limits else Limits().idle_required_s
        for kind, until in ((HERE, last + HERE_S), (LEFT, last + required_s), (AWAY, float("inf"))):
            end = min(at, until)
            if end > now:
                self._be(now, end, kind)
                now = end

    def _be(self, begin: float, end: float, kind: str) -> None:
        last = self.person[-1] if self.person else None
        if last is not None and last.kind == kind and abs(last.end - begin) < 1e-3:
            last.end = end
        elif end > begin:
            self.person.append(PersonSpan(begin, end, kind))

    def finish(self) -> None:
        """After the last line: what is open ends with it, and everything is put in order of its begin."""
        if self._task is not None:
            self._task.end = self._at
            self.tasks.append(self._task)
        self._close(self._at)
        self.spans.sort(key=lambda s: s.begin)
        self.tasks.sort(key=lambda t: t.begin)
        self.person.sort(key=lambda p: p.begin)
        self.points.sort(key=lambda p: p.at)
        self.marks.sort(key=lambda m: m.at)


def _text(value: Any) -> str:
    """A text of the journal on one line, without what a terminal or a page would obey."""
    return one_line(str(value), MAX_TEXT)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else None
