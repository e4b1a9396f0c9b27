"""The diagram of the state machine, made from the table that runs: what each form draws, and the text forms.

There is one arrow for each pair of states. Its labels are the rows that lead there, in the order in which they are tried.
Names, conditions, effects and reasons come from the table. Only MEANING, a few words for each guard, stands here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from states.formatting import elapsed
from states.guards import SAFE, Guard
from states.memory import State
from states.table import ROWS, Condition, Row

if TYPE_CHECKING:
    from supervisor.tools.history.row_counts import RowCounts

MADE_FROM: Final = "made from states/table.py by `rae-node diagram`; do not edit"

MEANING: Final[Mapping[str, str]] = {
    "automation_on": "runtime.yaml says so, no pause, a sound configuration, the link is not given up",
    "user_away": "no sign of the person for idle_required_minutes",
    "gpu_free": "GPU and VRAM of others within their limits, no foreign process",
    "cpu_free": "CPU of others within max_cpu_percent",
    "host_fit": "power, memory and temperature allow work, no sleep announced",
    "host_staying": "no sleep or shutdown announced",
    "task_claimed": "a task was handed over and waits for its start",
    "task_in_time": "the task has run for less than its limit, since its start",
    "task_over": "nothing is asked for, claimed or running",
    "task_here": "a task was handed over: over means ended or failed",
    "stay_young": "this stay in RUNNING is younger than work.run_minutes",
    "may_hold": "hold_sec is set and not used up, and the task has nothing on the GPU",
    "on_hold": "the task is frozen because of a sign that may be a false alarm",
    "hold_over": "no task is frozen, or it has been for its whole hold_sec",
    "task_gone": "no process of a task is alive",
    "cooldown_over": "cooldown_minutes have passed since RUNNING was left",
}


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is drawn over the bare table: the node's state now, and what journals counted for each arrow."""

    now: State | None = None
    counts: RowCounts | None = None

    def row(self, source: State, row: Row) -> str:
        """A row's label: its name, and how often it fired."""
        return row.id if self.counts is None else f"{row.id} ×{self.counts.fired[source, row.id]}"

    def never(self, source: State, row: Row) -> bool:
        """The journals show no such step."""
        return self.counts is not None and not self.counts.fired[source, row.id]

    def labels(self, pair: tuple[State, State], rows: Iterable[Row]) -> list[str]:
        """The lines at an arrow: its rows, and how long the node had been in the first state when it left this way."""
        typical_s = None if self.counts is None else self.counts.typical_s(pair)
        stay = [] if typical_s is None else [f"after {elapsed(typical_s)}"]
        return [self.row(pair[0], row) for row in rows] + stay

    def time(self, state: State) -> str:
        """How long the node was in a state, in all."""
        found = self.counts
        return "" if found is None else f"{elapsed(found.seconds[state])}, {100 * found.share(state):.0f} %"

    def span(self) -> str:
        """The time that the counts cover."""
        if self.counts is None:
            return ""
        first, last = (stamp.replace("T", " ") for stamp in (self.counts.first, self.counts.last))
        return f"{first} to {last}: how often each row fired, and the median stay before"


BARE: Final = Overlay()
_quoted = partial(json.dumps, ensure_ascii=False)  # DOT escapes as JSON does


def arrows() -> dict[tuple[State, State], list[Row]]:
    """(from, to) → the rows that lead there, in the table's order."""
    pairs: dict[tuple[State, State], list[Row]] = {}
    for row in ROWS:
        for source in row.sources:
            pairs.setdefault((source, row.to), []).append(row)
    return pairs


def guards() -> list[Guard]:
    """Every guard that the table reads, in the order in which it first does."""
    return list({guard.name: guard for row in ROWS for condition in row.when for guard in condition.guards}.values())


def condition_text(row: Row) -> str:
    """When a row fires, by the guards' names: `task_over ∧ stay_young ∧ SAFE`."""
    return " ∧ ".join(_condition(c) for c in row.when)


def _condition(condition: Condition) -> str:
    others = [guard.name for guard in condition.guards if guard not in SAFE]
    names = [*others, "SAFE"] if set(SAFE) <= set(condition.guards) else [guard.name for guard in condition.guards]
    if condition.wanted:
        return " ∧ ".join(names)
    return f"not {names[0]}" if len(names) == 1 else f"not ({' ∧ '.join(names)})"


def effects_text(row: Row) -> str:
    """The effects of a row."""
    return "by the task's phase" if row.effects is None else ", ".join(row.effects) or "none"


def tooltip(rows: Iterable[Row]) -> str:
    """The reasons of an arrow's rows, one a line."""
    return "\n".join(f"{row.id}: {row.why}" for row in rows)


def mermaid(overlay: Overlay = BARE) -> str:
    """A Mermaid state diagram."""
    counted = overlay.counts is not None
    lines = [f"%% {MADE_FROM}", *([f"%% {overlay.span()}"] if counted else []), "stateDiagram-v2", "    direction LR"]
    lines += [f'    state "{state}<br/>{overlay.time(state)}" as {state}' for state in State if counted]
    lines.append("    [*] --> DISABLED")
    lines += [f"    {a} --> {b}: {'<br/>'.join(overlay.labels((a, b), rows))}" for (a, b), rows in arrows().items()]
    if overlay.now is not None:
        lines += ["    classDef now stroke-width:4px,font-weight:bold", f"    class {overlay.now} now"]
    return "\n".join(lines) + "\n"


def dot(overlay: Overlay = BARE) -> str:
    """A Graphviz digraph."""
    lines = [
        f"// {MADE_FROM}",
        "digraph lifecycle {",
        "    rankdir=LR;",
        '    node [shape=box, style=rounded, fontname="DejaVu Sans"];',
        '    edge [fontname="DejaVu Sans", fontsize=10];',
        "    start [shape=point];",
        *(f"    {state}{_dot_state(state, overlay)};" for state in State),
        f"    start -> {State.DISABLED};",
    ]
    for (a, b), rows in arrows().items():
        label = "\n".join(overlay.labels((a, b), rows))
        lines.append(f"    {a} -> {b} [label={_quoted(label)}, tooltip={_quoted(tooltip(rows))}];")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_state(state: State, overlay: Overlay) -> str:
    label = _quoted(f"{state}\n{overlay.time(state)}")
    marks = [f"label={label}"] if overlay.counts is not None else []
    if state is overlay.now:
        marks.append('penwidth=4, style="rounded,bold"')
    return f" [{', '.join(marks)}]" if marks else ""
