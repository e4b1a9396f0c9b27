"""The sums of a timeline or of a part of it: hours by state, tasks by outcome, how soon a task made room."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.tools.history.timeline.spans import AWAY, GAP, HERE, LEFT
from supervisor.tools.history.timeline.timeline import Timeline


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


def summary(told: Timeline) -> Summary:
    """The sums. A task counts on the day of its end."""
    s = Summary()
    for span in told.spans:
        hours = (span.end - span.begin) / 3600
        if span.state == GAP:
            s.gap_h += hours
        else:
            s.recorded_h += hours
            s.states_h[span.state] = s.states_h.get(span.state, 0.0) + hours
    for person in told.person:
        hours = (person.end - person.begin) / 3600
        s.here_h += hours * (person.kind in (HERE, LEFT))
        s.away_h += hours * (person.kind == AWAY)
    for task in told.tasks:
        s.given_h += (task.end - task.begin) / 3600
        if task.end >= told.end:
            continue  # it goes on, or ends on another day
        s.done += task.outcome == "done"
        s.failed += task.outcome == "failed"
        s.lost += task.outcome == "lost"
        if task.outcome == "handed back":
            s.handed_back[task.row] = s.handed_back.get(task.row, 0) + 1
        if task.reaction_s is not None:
            s.reactions_s.append(task.reaction_s)
    return s
