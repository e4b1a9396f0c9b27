"""What a timeline is made of: stays in states, tasks, the person, readings, marks. Times are seconds since the epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from states.limits import Limits

GAP: Final = "GAP"


class PersonState(StrEnum):
    """The person as the node saw them."""

    HERE = "here"
    LEFT = "just left"  # not away for long enough
    AWAY = "away"
    UNSEEN = "unknown"


class TaskOutcome(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    HANDED_BACK = "handed back"
    LOST = "lost"  # the node was gone before its end


@dataclass(slots=True)
class Span:
    """A stay in a state, or a gap (`state` GAP): what led to it, what ended it, and the reasons given meanwhile."""

    begin: float
    end: float
    state: str
    why: str = ""
    left: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class TaskSpan:
    """A task from its start to its end; `why` it ended so, and the `row` that ended it."""

    begin: float
    end: float
    id: str
    type: str
    outcome: TaskOutcome = TaskOutcome.RUNNING
    why: str = ""
    row: str = ""
    reaction_s: float | None = None  # from the person's sign until no process was left

    @property
    def ended_badly(self) -> bool:
        return self.outcome in (TaskOutcome.HANDED_BACK, TaskOutcome.FAILED, TaskOutcome.LOST)


@dataclass(slots=True)
class PersonSpan:
    begin: float
    end: float
    state: PersonState


class Cause(StrEnum):
    """What kept the node from working for a while; several may hold at a time."""

    PERSON = "the person"
    GPU = "the GPU"
    CPU = "the CPU"
    HOST = "the machine"  # power, heat, memory, hours
    COOLDOWN = "rest after work"
    OFF = "switched off, or paused"
    LINK = "no link"
    NO_TASK = "no task to do"


@dataclass(slots=True)
class KeptSpan:
    """A time in which one cause kept the node from working."""

    begin: float
    end: float
    cause: Cause


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
    text: str


@dataclass(slots=True)
class Timeline:
    """Everything from `begin` to `end`, in order. `limits`: (since, limits) pairs; `left_out`: lines that cannot be read;
    `version`: of the node that wrote last."""

    begin: float = 0.0
    end: float = 0.0
    spans: list[Span] = field(default_factory=list)
    tasks: list[TaskSpan] = field(default_factory=list)
    person: list[PersonSpan] = field(default_factory=list)
    kept: list[KeptSpan] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    limits: list[tuple[float, Limits]] = field(default_factory=list)
    left_out: int = 0
    version: str = ""

    def mark(self, at: float, kind: str, text: str) -> None:
        self.marks.append(Mark(at, kind, text))

    def days(self) -> list[tuple[float, float]]:
        """Local days, from midnight to midnight: 23 or 25 hours where the clock changes."""
        days = []
        day = midnight(self.begin)
        while day < self.end:
            following = midnight(day + 6 * 3600, 1)  # where midnight is skipped it lies in the day before
            days.append((day, following))
            day = following
        return days

    def last(self, days: int) -> Timeline:
        """The last so many local days."""
        return self.between(midnight(self.end - 1e-3, 1 - days), self.end)

    def between(self, begin: float, end: float) -> Timeline:
        """What lies in a part of the time; spans are cut at its ends."""

        def cut(spans: list[Any]) -> list[Any]:
            return [
                s if begin <= s.begin and s.end <= end else replace(s, begin=max(begin, s.begin), end=min(end, s.end))
                for s in spans
                if s.begin < end and (s.end > begin or s.begin >= begin)
            ]

        def inside(moments: list[Any]) -> list[Any]:
            return [m for m in moments if begin <= m.at and (m.at < end or end >= self.end)]

        following = [since for since, _ in self.limits[1:]] + [float("inf")]
        return replace(
            self,
            begin=max(begin, self.begin),
            end=min(end, self.end),
            spans=cut(self.spans),
            tasks=cut(self.tasks),
            person=cut(self.person),
            kept=cut(self.kept),
            points=inside(self.points),
            marks=inside(self.marks),
            limits=[  # the first ones hold before the first line too
                pair for n, pair in enumerate(self.limits) if following[n] > begin and (n == 0 or pair[0] < end)
            ],
        )

    def gaps(self) -> Iterator[Span]:
        return (span for span in self.spans if span.state == GAP)

    def steps(self) -> Iterator[tuple[float, float, Limits]]:
        """(from, to, limits in force)."""
        pairs = [*self.limits, (self.end, self.limits[-1][1])]
        for n, ((begin, limits), (end, _)) in enumerate(pairwise(pairs)):
            yield (self.begin if n == 0 else begin), end, limits


def midnight(at: float, days: int = 0) -> float:
    """The local midnight of the day of `at`, or of so many days later."""
    local = time.localtime(at)
    return time.mktime((local.tm_year, local.tm_mon, local.tm_mday + days, 0, 0, 0, 0, 0, -1))
