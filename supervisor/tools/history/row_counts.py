"""What recorded journals say about the arrows of the diagram: how often each row fired, how long the stays were (R16, R22).

A row counts when its state was reached: a vetoed one does not. Time is boot time within one life of the daemon; what a
power cut, or lines that are missing, hide is in no stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from states.memory import State
from states.table import ROWS
from supervisor.journal import decision_log as journal

_KNOWN = {row.id: row for row in ROWS}
LATEST_S: Final = 1e11  # since boot; no machine is up for 3000 years


class TrafficError(Exception):
    """There is nothing to count; the text says why and what to do."""


@dataclass(slots=True)
class Traffic:
    """`counts`: how often a row fired from a state. `stays`: seconds of the stays in the first state of (from, to) that
    ended by going there. `seconds`: all time in a state. `first`, `last`: what time is told of, to the minute."""

    counts: Counter[tuple[State, str]] = field(default_factory=Counter)
    stays: dict[tuple[State, State], list[float]] = field(default_factory=dict)
    seconds: dict[State, float] = field(default_factory=lambda: dict.fromkeys(State, 0.0))
    first: str = ""
    last: str = ""

    def share(self, state: State) -> float:
        """Of all the time that is told of, 0 to 1."""
        whole = sum(self.seconds.values())
        return self.seconds[state] / whole if whole else 0.0

    def typical_s(self, pair: tuple[State, State]) -> float | None:
        """The middle of the stays that ended by this arrow; None: none did, or none was seen whole."""
        stays = self.stays.get(pair)
        return median(stays) if stays else None


@dataclass(slots=True)
class _Life:
    """Where the counting stands: the state now, since when, and when time was last seen to pass."""

    state: State | None = None
    since_s: float | None = None
    seen_s: float = 0.0
    fired: dict[str, Any] | None = None

    def reached(self, now_s: float, traffic: Traffic) -> None:
        if self.state is not None and now_s >= self.seen_s:
            traffic.seconds[self.state] += now_s - self.seen_s
        self.seen_s = now_s


def count(paths: Iterable[Path]) -> Traffic:
    """Read journals, in order.

    Raises:
        OSError: a file cannot be read.
        TrafficError: they hold no decision.
    """
    traffic, life = Traffic(), _Life()
    for path in journal.files(paths):
        for _, entry in journal.read(path):
            _take(entry, traffic, life)
    if not traffic.counts:
        raise TrafficError("no decision in these journals; name files decisions-*.jsonl, or a folder that holds some")
    return traffic


def _take(entry: dict[str, Any], traffic: Traffic, life: _Life) -> None:
    kind, now_s = entry["kind"], entry.get("boot_s")
    if isinstance(now_s, bool) or not isinstance(now_s, int | float) or not abs(now_s) < LATEST_S:
        return
    stamp = str(entry.get("time", ""))[:16]
    traffic.first, traffic.last = traffic.first or stamp, stamp
    if kind == "start":
        life.state, life.since_s, life.seen_s, life.fired = State.DISABLED, now_s, now_s, None
        return
    if kind == "gap":
        memory = entry.get("memory")
        life.state = _state(memory.get("state")) if isinstance(memory, dict) else None
        life.since_s, life.seen_s, life.fired = None, now_s, None
        return
    life.reached(now_s, traffic)
    if kind == "decision":
        row = entry.get("row")
        life.fired = entry if isinstance(row, str) and row in _KNOWN else None
    if kind in ("decision", "effect") and life.fired is not None and (after := _state(entry.get("state"))) is not None:
        _fire(life.fired, after, now_s, traffic, life)
        life.fired = None
    elif kind == "alive" and life.state is None:
        life.state = _state(entry.get("state"))
    elif kind == "stop":
        life.state = None


def _fire(decision: dict[str, Any], after: State, now_s: float, traffic: Traffic, life: _Life) -> None:
    before, row = _state(decision.get("from")), _KNOWN[decision["row"]]
    if before is None or after is not row.to:
        return  # vetoed
    traffic.counts[before, row.id] += 1
    if before is after:
        return  # the stay goes on
    if life.since_s is not None and life.state is before:
        traffic.stays.setdefault((before, after), []).append(max(0.0, now_s - life.since_s))
    life.state, life.since_s = after, now_s


def _state(value: Any) -> State | None:
    return State(value) if value in tuple(State) else None
