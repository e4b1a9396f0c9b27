"""Texts that every form of the timeline uses: the terminal, the picture and the page."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from statistics import median
from typing import Final

from states.formatting import elapsed, number
from states.memory import State
from supervisor.tools.history.timeline.spans import GAP, Cause, PersonSpan, PersonState, Span, TaskSpan, Timeline
from supervisor.tools.history.timeline.sums import summary


def quick(seconds: float) -> str:
    """A reaction: `4 ms`, `2.0 s`, `5 min`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 100 else elapsed(seconds)


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


def _from_to(span: Span | TaskSpan | PersonSpan) -> str:
    return f"{clock(span.begin)} to {clock(span.end)} ({elapsed(span.end - span.begin)})"


def span_text(span: Span, tasks: Iterable[TaskSpan] = ()) -> str:
    """A span in lines: what, when, why it was entered, the reasons given meanwhile, its tasks, and what ended it."""
    lines = [f"{'no record' if span.state == GAP else span.state}, {_from_to(span)}"]
    if span.why:
        lines.append(span.why if span.state == GAP else f"because {span.why}")
    if span.state != State.RUNNING:
        lines += [f"reason: {reason}" for reason in span.reasons]
    counts = Counter(t.outcome for t in tasks if t.begin < span.end and t.end > span.begin)
    if counts:
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        lines.append(f"{counts.total()} {'task' if counts.total() == 1 else 'tasks'}: {outcomes}")
    if span.left:
        lines.append(f"until {span.left}")
    return "\n".join(lines)


def task_text(task: TaskSpan) -> str:
    """A task in lines."""
    name = f"{task.type or 'task'} {short(task.id)}".rstrip()
    lines = [f"{name}: {task.outcome}, {_from_to(task)}"]
    if task.why:
        lines.append(task.why)
    if task.reaction_s is not None:
        lines.append(f"gone {quick(task.reaction_s)} after the person came back")
    return "\n".join(lines)


def person_text(span: PersonSpan) -> str:
    """The person in a line."""
    text = "just left, not away for long enough" if span.state is PersonState.LEFT else f"person {span.state}"
    return f"{text}, {_from_to(span)}"


def day_text(part: Timeline) -> str:
    """A day's sums in a line."""
    s = summary(part)
    parts = [f"{hours(s.given_h)} given", f"{s.done} done"]
    parts += [f"{s.failed} failed"] if s.failed else []
    parts += [f"{s.preempted} handed back"] if s.preempted else []
    parts += [f"{s.lost} lost"] if s.lost else []
    parts += [f"no record of {hours(s.gap_h)}"] if s.gap_h > 0.05 else []
    return ", ".join(parts)


def summary_rows(timeline: Timeline) -> list[tuple[str, str]]:
    """The summary as (name, value)."""
    s = summary(timeline)
    share = f" ({100 * s.given_h / s.recorded_h:.0f} % of the time on record)" if s.recorded_h else ""
    states = ", ".join(f"{state} {hours(s.states_h[state])}" for state in State if s.states_h.get(state, 0) > 0)
    back = ", ".join(f"{n} by {row or 'no row'}" for row, n in sorted(s.handed_back.items(), key=lambda p: -p[1]))
    rows = [
        ("Given to tasks", hours(s.given_h) + share),
        ("Tasks done", f"{s.done}" + (f", {s.failed} failed" if s.failed else "") + (f", {s.lost} lost" if s.lost else "")),
        ("Handed back", f"{s.preempted}" + (f": {back}" if back else "")),
        ("Person back → task gone", _reactions(s.reactions_s)),
        ("Person at the machine", f"{hours(s.here_h)}; away {hours(s.away_h)}"),
        ("States", states),
        ("No record", hours(s.gap_h) if s.gap_h > 0.01 else "nothing is missing"),
    ]
    if timeline.left_out:
        rows.append(("Lines left out", f"{timeline.left_out}: torn, or of another version or form"))
    return rows


# The setting that each cause depends on; with `=`, one that `whatif` can try.
_SETTINGS: Final[Mapping[Cause, tuple[str, str]]] = {
    Cause.PERSON: ("safety.idle_required_minutes", "idle_required_s"),
    Cause.GPU: ("safety.max_gpu_percent", "max_gpu_percent"),
    Cause.CPU: ("safety.max_cpu_percent", "max_cpu_percent"),
    Cause.HOST: ("host.*, work.hours", ""),
    Cause.COOLDOWN: ("safety.cooldown_minutes", "cooldown_s"),
    Cause.OFF: ("automation.enabled, `rae-node pause`", ""),
    Cause.LINK: ("control.url", ""),
    Cause.NO_TASK: ("", ""),
}


def kept_rows(timeline: Timeline) -> list[tuple[str, str, str, str]]:
    """What kept the node from working, the longest first: (cause, how long, its setting, a command that tries another)."""
    kept_h, limits = summary(timeline).kept_h, timeline.limits[-1][1]
    rows = []
    for cause, spent_h in sorted(kept_h.items(), key=lambda pair: -pair[1]):
        setting, field = _SETTINGS[cause]
        command = ""
        if field:
            value = getattr(limits, field) / (60 if field.endswith("_s") else 1)
            other = value / 2 if field.endswith("_s") else min(100.0, value + (100.0 - value) / 2)
            command = f"rae-node whatif --set {setting}={number(other)}"
        if spent_h >= 0.01:
            rows.append((str(cause), hours(spent_h), setting, command))
    return rows


def day_lines(part: Timeline, least_s: float = 300.0) -> list[str]:
    """A day in sentences: from when to when, what, and why. Work and the rests between are one sentence; what is shorter than
    `least_s` seconds is left out."""
    lines = []
    for worked, spans in groupby(part.spans, lambda span: span.state in (State.RUNNING, State.COOLDOWN)):
        if worked:
            lines += _work_line(part, list(spans), least_s)
            continue
        for span in spans:
            if span.end - span.begin >= least_s:
                what = span.why if span.state == GAP else f"{span.state}{_kept_by(part, span)}"
                lines.append(f"{_from_to(span)}: {what}")
    return lines


def _work_line(part: Timeline, spans: list[Span], least_s: float) -> list[str]:
    """One stay after the other in RUNNING and COOLDOWN."""
    whole = Span(spans[0].begin, spans[-1].end, State.RUNNING)
    if whole.end - whole.begin < least_s:
        return []
    counts = Counter(t.outcome for t in part.tasks if t.begin < whole.end and whole.begin < t.end <= whole.end)
    rests_s = sum(span.end - span.begin for span in spans if span.state == State.COOLDOWN)
    tasks = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
    parts = [f"worked: {tasks}" if tasks else "worked"] + [f"{elapsed(rests_s)} of rest between and after"] * (rests_s >= 60)
    return [f"{_from_to(whole)}: {', '.join(parts)}"]


def _kept_by(part: Timeline, span: Span) -> str:
    """What kept the node from working in this stay, the longest first, and the reason that it gave."""
    causes = Counter[str]()
    for kept in part.kept:
        causes[str(kept.cause)] += max(0, round(min(kept.end, span.end) - max(kept.begin, span.begin)))
    shown = ", ".join(f"{cause} {elapsed(seconds)}" for cause, seconds in causes.most_common(3) if seconds >= 60)
    return (f", kept by {shown}" if shown else "") + (f" ({span.reasons[0]})" if span.reasons else "")


def _reactions(reactions_s: list[float]) -> str:
    if not reactions_s:
        return "nobody came back to a task"
    worst, count = max(reactions_s), len(reactions_s)
    return f"median {quick(median(reactions_s))}, worst {quick(worst)}, {count} {'time' if count == 1 else 'times'}"


def short(task_id: str) -> str:
    """Enough of an id to tell tasks apart."""
    return f"{task_id[:8]}…" if len(task_id) > 12 else task_id
