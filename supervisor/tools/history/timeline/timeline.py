"""What a journal tells of some days: states, tasks, the person, readings, and what is missing (R16).

Its parts are in spans.py, reading in reader.py, sums in sums.py, words in words.py; drawing is in svg.py, html.py and
terminal.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from states.limits import Limits
from supervisor.journal import decision_log as journal
from supervisor.tools.history.timeline.reader import SILENT_S as SILENT_S
from supervisor.tools.history.timeline.reader import Reader
from supervisor.tools.history.timeline.spans import GAP, Mark, PersonSpan, Point, Span, TaskSpan


class TimelineError(Exception):
    """There is nothing to draw; the text says why and what to do."""


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


def load(paths: Iterable[Path], days: int) -> Timeline:
    """The last `days` local days that the journals know of.

    Raises:
        TimelineError: no line says anything.
        OSError: a journal cannot be read.
    """
    reader = Reader()
    for path in journal.files(paths):
        before = 0
        for number, entry in journal.read(path):
            reader.left_out += number - before - 1
            before = number
            reader.take(entry)
    reader.finish()
    if not reader.spans:
        raise TimelineError("no line tells of a node; name journals (decisions-*.jsonl) or a folder of them")
    begin, end = reader.spans[0].begin, max(s.end for s in reader.spans)
    whole = Timeline(
        begin,
        end,
        reader.spans,
        reader.tasks,
        reader.person,
        reader.points,
        reader.marks,
        reader.limits or [(begin, Limits())],
        reader.left_out,
        reader.version,
    )
    return whole.between(midnight(whole.end - 1e-3, 1 - days), whole.end)


def gaps(timeline: Timeline) -> Iterator[Span]:
    """What is missing."""
    return (span for span in timeline.spans if span.state == GAP)


def steps(timeline: Timeline) -> Iterator[tuple[float, float, Limits]]:
    """(from, to, limits in force)."""
    pairs = [*timeline.limits, (timeline.end, timeline.limits[-1][1])]
    for n, ((begin, limits), (end, _)) in enumerate(pairwise(pairs)):
        yield (timeline.begin if n == 0 else begin), end, limits
