"""A timeline for the terminal: two lines a day, the states and below them the person, as wide as the terminal.

Every state has a sign of its own, so that nothing depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from states.memory import State
from supervisor.tools.history.timeline.spans import GAP, PersonState, TaskOutcome, Timeline
from supervisor.tools.history.timeline.words import date, day_text, kept_rows, summary_rows

if TYPE_CHECKING:
    from rich.text import Text

SIGNS: Final = {
    State.RUNNING: ("█", "green"),
    State.COOLDOWN: ("▓", "yellow"),
    State.READY: ("▄", "bright_yellow"),
    State.IDLE_WAIT: ("─", "cyan"),
    State.DISABLED: ("×", "bright_black"),
    GAP: ("?", "bright_black"),
}
PERSON: Final[dict[str, str]] = {PersonState.HERE: "▀", PersonState.LEFT: "'", PersonState.UNSEEN: "?"}
BACK: Final = "▼"
_MARGIN: Final = 12


def lines(timeline: Timeline, width: int) -> Iterator[Text]:
    """The whole, line by line, none longer than `width`."""
    from rich.text import Text

    days = timeline.days()
    longest_s = max(b - a for a, b in days)
    columns = max(24, width - _MARGIN)
    per_s = columns / longest_s
    hours = [" "] * columns
    for hour in range(0, 24, 3 if columns >= 48 else 6):
        at = int(hour * 3600 * per_s)
        hours[at : at + 2] = f"{hour:02}"
    yield Text(" " * _MARGIN + "".join(hours).rstrip(), "dim")
    for begin, end in days:
        part = timeline.between(begin, end)
        count = round((end - begin) * per_s)
        row = Text(f"{date(begin)[:-5]:<{_MARGIN}}")
        for kind in _cells(((s.begin, s.end, s.state) for s in part.spans), begin, per_s, count):
            sign, style = SIGNS.get(kind, SIGNS[GAP] if kind else (" ", ""))
            row.append(sign, style)
        yield row
        below = [PERSON.get(k, " ") for k in _cells(((p.begin, p.end, p.state) for p in part.person), begin, per_s, count)]
        for task in part.tasks:
            if task.outcome is TaskOutcome.HANDED_BACK and task.end < end:
                below[min(count - 1, int((task.end - begin) * per_s))] = BACK
        yield Text(" " * _MARGIN + "".join(below).rstrip(), "magenta")
    yield Text("")
    legend = Text()
    for kind, (sign, style) in SIGNS.items():
        legend.append(f"{sign} ", style).append(f"{'no record' if kind == GAP else kind}  ")
    yield legend
    here, left, unseen = PERSON.values()
    yield Text(f"{here} person here  {left} just left  {unseen} person unknown  {BACK} task handed back")
    yield Text("")
    if len(days) <= 10:
        for begin, end in days:
            yield Text(f"{date(begin)[:-5]:<{_MARGIN}}{day_text(timeline.between(begin, end))}")
        yield Text("")
    for name, value in summary_rows(timeline):
        yield Text(f"{name:<25} {value}")
    kept = kept_rows(timeline)
    if kept:
        yield Text("")
        yield Text("What kept it from working (several may at a time):")
    for cause, spent, setting, command in kept:
        yield Text(f"  {cause:<23} {spent:<12} {command or setting}")


def _cells(spans: Iterable[tuple[float, float, str]], begin: float, per_s: float, count: int) -> list[str]:
    """For each column the kind that holds most of it, or ""."""
    held: list[dict[str, float]] = [{} for _ in range(count)]
    for a, b, kind in spans:
        left, right = (a - begin) * per_s, (b - begin) * per_s
        for n in range(max(0, int(left)), min(count, int(right) + 1)):
            share = min(right, n + 1) - max(left, n)
            held[n][kind] = held[n].get(kind, 0.0) + share
    return [max(cell, key=lambda kind: cell[kind]) if sum(cell.values()) > 0.3 else "" for cell in held]
