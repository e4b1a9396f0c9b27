"""What would have happened with other limits: recorded journals judged again by the daemon's own rules.

The same is assumed before and after. A task is always there while the control node can be reached; it lasts `task_s`.
Every effect succeeds at once. Readings hold between lines; the person's last sign ages by itself (as in interface §5). A
decision is written at the sign that led to it. Where only a sign of life shows a newer sign, the person is taken to have
come half-way since the line before: too early as often as too late. Time in which the node wrote nothing for `SILENT_S`
does not count. A restart begins in DISABLED and loses the running task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from states.effects import Effect
from states.lifecycle import EffectResult, Lifecycle, Outcome
from states.limits import Limits
from states.memory import State
from states.observation import NO_TASK, Link, Observation, Person, Task, TaskPhase
from supervisor.journal import decision_log
from supervisor.tools.history.recorded import Begin, Config, Decision, JournalReader, Unreadable
from supervisor.tools.history.timeline.reader import SILENT_S

_EIGHTHS = " ▏▎▍▌▋▊▉"
_CLAIMED, _RUNNING, _ENDED = (Task(phase, "t", "any") for phase in (TaskPhase.CLAIMED, TaskPhase.RUNNING, TaskPhase.ENDED))


class WhatIfError(Exception):
    """The journals hold no answer; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Past:
    """What was seen, from start to start of the daemon, and the last limits in force."""

    lives: tuple[tuple[Observation, ...], ...]
    limits: Limits


@dataclass(slots=True)
class Result:
    """Hours in READY and RUNNING, tasks done and preempted, and how often the person came back to a running task."""

    hours_ready: float = 0.0
    hours_worked: float = 0.0
    tasks_done: int = 0
    tasks_preempted: int = 0
    person_met: int = 0


def load(paths: Iterable[Path]) -> Past:
    """Everything that was seen.

    Raises:
        WhatIfError: nothing was seen, or a line cannot be read.
        OSError: a journal cannot be read.
    """
    lives: list[list[Observation]] = [[]]
    limits, reader = Limits(), JournalReader(signs_of_life=True)
    try:
        for record in (record for path in decision_log.files(paths) for record in reader.read(path)):
            match record:
                case Begin(kind="start"):
                    lives.append([])
                case Begin(limits=Limits() as now) | Config(limits=now):
                    limits = now
                case Decision(observation=seen) | (Observation() as seen):
                    seen = replace(seen, task=NO_TASK)
                    if lives[-1] and seen.now_s < lives[-1][-1].now_s:
                        lives.append([])
                    if lives[-1] and (came := _came(lives[-1][-1], seen, isinstance(record, Decision))) is not None:
                        lives[-1].append(came)
                    lives[-1].append(seen)
    except Unreadable as error:
        raise WhatIfError(f"{error}: this line is not of the journal's form") from None
    kept = tuple(tuple(life) for life in lives if life)
    if not kept:
        raise WhatIfError("no line holds what was seen; name journals (decisions-*.jsonl) or a folder of them")
    return Past(kept, limits)


def _came(before: Observation, after: Observation, decided: bool) -> Observation | None:
    """The moment between two looks at which the person came, as far as it is known, with the earlier look's readings."""
    was, now = before.person.value, after.person.value
    if was is None or now is None or not now.last_sign_at_s > max(was.last_sign_at_s, before.now_s) + 1.0:
        return None
    at_s = min(now.last_sign_at_s, after.now_s)
    if not decided:
        at_s = (before.now_s + at_s) / 2
    seen = _aged(before, at_s)
    return replace(seen, person=replace(seen.person, value=Person(at_s, now.sign)))


def live(past: Past, limits: Limits, task_s: float) -> Result:
    """The past again under these limits, with tasks of `task_s` seconds."""
    result = Result()
    for life in past.lives:
        lifecycle = Lifecycle(limits, life[0].now_s)
        for before, after in pairwise(life):
            if after.now_s - before.now_s > SILENT_S:
                _settle(lifecycle, before, task_s, result)
            else:
                _span(lifecycle, before, after.now_s, task_s, result)
        _settle(lifecycle, life[-1], task_s, result)
    return result


def _span(lifecycle: Lifecycle, seen: Observation, end_s: float, task_s: float, result: Result) -> None:
    """From one look to the next; what is due in between is judged when it is due."""
    now_s = seen.now_s
    while now_s < end_s:
        _settle(lifecycle, seen if now_s == seen.now_s else _aged(seen, now_s), task_s, result)
        next_s = min(end_s, _due(lifecycle, seen, now_s, task_s))
        if lifecycle.state is State.READY:
            result.hours_ready += (next_s - now_s) / 3600
        elif lifecycle.state is State.RUNNING:
            result.hours_worked += (next_s - now_s) / 3600
        now_s = next_s


def _aged(seen: Observation, now_s: float) -> Observation:
    """The same readings later: fresh ones hold, a stale one stays stale."""
    by_s = now_s - seen.now_s
    readings = {name: getattr(seen, name) for name in ("person", "gpu", "cpu", "host")}
    return replace(seen, now_s=now_s, **{n: replace(r, read_at_s=r.read_at_s + by_s) for n, r in readings.items()})


def _due(lifecycle: Lifecycle, seen: Observation, now_s: float, task_s: float) -> float:
    """The next moment at which time alone may change something (seconds)."""
    memory, limits = lifecycle.memory, lifecycle.limits
    times: list[float] = []
    if seen.person.value is not None:
        times.append(seen.person.value.last_sign_at_s + limits.idle_required_s)
    if memory.cooldown_from_s is not None:
        times.append(memory.cooldown_from_s + limits.cooldown_s)
    if memory.hold_from_s is not None:
        times.append(memory.hold_from_s + limits.hold_s)
    if memory.started_at_s is not None:
        times.append(memory.started_at_s + min(task_s, limits.task_timeout_s))
    return min((t for t in times if t > now_s + 1e-3), default=float("inf"))


def _with(o: Observation, task: Task) -> Observation:
    """The same look with this task. `dataclasses.replace` takes three times as long, and this is most of a run."""
    return Observation(o.now_s, o.automation, o.person, o.gpu, o.cpu, o.host, task, o.link, o.link_reason)


def _settle(lifecycle: Lifecycle, seen: Observation, task_s: float, result: Result) -> None:
    """Ticks at one moment until nothing more fires; a task is there whenever one is asked for."""
    offered = _CLAIMED if seen.link is Link.UP else NO_TASK
    for _ in range(8):
        memory = lifecycle.memory
        task = offered if memory.state in (State.READY, State.RUNNING) else NO_TASK
        if memory.state is State.RUNNING and memory.started_at_s is not None:
            task = _ENDED if seen.now_s - memory.started_at_s >= task_s - 1e-3 else _RUNNING
        plan = lifecycle.propose(seen if task is NO_TASK else _with(seen, task))
        row = plan.row
        if plan.quiet or (row is None and Effect.HAND_BACK in plan.effects):
            return  # without a row nobody would have asked for this task
        lifecycle.commit(plan, Outcome(tuple(EffectResult(e, True) for e in plan.effects)))
        if row is None:
            return
        if memory.state is State.RUNNING:
            result.tasks_done += Effect.SETTLE in plan.effects and task is _ENDED
            if Effect.STOP in plan.effects:
                result.tasks_preempted += row.id != "timed-out"
                result.person_met += row.id == "user-returned"


def as_rows(results: dict[str, Result], width: int = 80) -> Iterator[str]:
    """A table in text; below it, as bars no wider than `width`: hours worked, and how often a person was met."""
    name_w = max(12, *(len(name) for name in results))
    yield f"{'':<{name_w}} {'h ready':>8} {'h worked':>9} {'done':>6} {'preempted':>10} {'person met':>11}"
    for name, r in results.items():
        yield (
            f"{name:<{name_w}} {r.hours_ready:>8.2f} {r.hours_worked:>9.2f} {r.tasks_done:>6} {r.tasks_preempted:>10} "
            f"{r.person_met:>11}"
        )
    room = max(10, width - name_w - 10)
    for title, sum_of, digits in (("hours worked", "hours_worked", 1), ("person met", "person_met", 0)):
        values = {name: float(getattr(r, sum_of)) for name, r in results.items()}
        most = max(values.values(), default=0.0) or 1.0
        yield ""
        yield title
        for name, value in values.items():
            yield f"{name:<{name_w}} {value:>7.{digits}f} {_bar(value / most * room)}".rstrip()


def _bar(cells: float) -> str:
    """A bar to an eighth of a character."""
    whole, part = divmod(int(cells * 8 + 0.5), 8)
    return "█" * whole + _EIGHTHS[part].strip()


def as_json(results: dict[str, Result]) -> list[dict[str, Any]]:
    """One object for each line of the table."""
    return [{"name": name, **msgspec.to_builtins(r)} for name, r in results.items()]
