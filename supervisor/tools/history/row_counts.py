"""Counts from recorded journals for the diagram: how often each row fired, and how long the stays in each state were.

A row counts when its state was reached; a vetoed row does not count. Times are boot times within one run of the daemon.
A stay is left out when a power cut or missing lines hide a part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from states.memory import State
from states.table import BY_ID
from supervisor.journal import decision_log

LATEST_S: Final = 1e11  # since boot; no machine is up for 3000 years


class NothingToCount(Exception):
    """The journals hold no decision; the text says what to do."""


@dataclass(slots=True)
class RowCounts:
    """`fired`: how often a row fired from a state. `stays`: seconds of the stays in `from` that ended with (from, to).
    `seconds`: all time in a state. `first`, `last`: the time that the counts cover, to the minute."""

    fired: Counter[tuple[State, str]] = field(default_factory=Counter)
    stays: dict[tuple[State, State], list[float]] = field(default_factory=dict)
    seconds: dict[State, float] = field(default_factory=lambda: dict.fromkeys(State, 0.0))
    first: str = ""
    last: str = ""

    def share(self, state: State) -> float:
        """The share of a state in all the time, 0 to 1."""
        whole = sum(self.seconds.values())
        return self.seconds[state] / whole if whole else 0.0

    def typical_s(self, pair: tuple[State, State]) -> float | None:
        """The median of the stays that ended with this arrow; None: no complete stay did."""
        stays = self.stays.get(pair)
        return median(stays) if stays else None


@dataclass(slots=True)
class _Run:
    """One run of the daemon so far: its state, since when, the time of the last line, and a decision whose outcome is open."""

    state: State | None = None
    since_s: float | None = None
    seen_s: float = 0.0
    decision: dict[str, Any] | None = None


def count(paths: Iterable[Path]) -> RowCounts:
    """Read journals, in order.

    Raises:
        OSError: a file cannot be read.
        NothingToCount: they hold no decision.
    """
    counts, run = RowCounts(), _Run()
    for path in decision_log.files(paths):
        for _, entry in decision_log.read(path):
            _take(entry, counts, run)
    if not counts.fired:
        raise NothingToCount("no decision in these journals; name files decisions-*.jsonl, or a folder that holds some")
    return counts


def _take(entry: dict[str, Any], counts: RowCounts, run: _Run) -> None:
    kind, now_s = entry["kind"], entry.get("boot_s")
    if isinstance(now_s, bool) or not isinstance(now_s, int | float) or not abs(now_s) < LATEST_S:
        return
    stamp = str(entry.get("time", ""))[:16]
    counts.first, counts.last = counts.first or stamp, stamp
    if kind == "start":
        run.state, run.since_s, run.seen_s, run.decision = State.DISABLED, now_s, now_s, None
        return
    if kind == "gap":
        memory = entry.get("memory")
        run.state = _state(memory.get("state")) if isinstance(memory, dict) else None
        run.since_s, run.seen_s, run.decision = None, now_s, None
        return
    if run.state is not None and now_s >= run.seen_s:
        counts.seconds[run.state] += now_s - run.seen_s
    run.seen_s = now_s
    if kind == "decision":
        row = entry.get("row")
        run.decision = entry if isinstance(row, str) and row in BY_ID else None
    if kind in ("decision", "effect") and run.decision is not None and (after := _state(entry.get("state"))) is not None:
        _fire(run.decision, after, now_s, counts, run)
        run.decision = None
    elif kind == "alive" and run.state is None:
        run.state = _state(entry.get("state"))
    elif kind == "stop":
        run.state = None


def _fire(decision: dict[str, Any], after: State, now_s: float, counts: RowCounts, run: _Run) -> None:
    before, row = _state(decision.get("from")), BY_ID[decision["row"]]
    if before is None or after is not row.to:
        return  # vetoed
    counts.fired[before, row.id] += 1
    if before is after:
        return  # the stay goes on
    if run.since_s is not None and run.state is before:
        counts.stays.setdefault((before, after), []).append(max(0.0, now_s - run.since_s))
    run.state, run.since_s = after, now_s


def _state(value: Any) -> State | None:
    return State(value) if value in tuple(State) else None
