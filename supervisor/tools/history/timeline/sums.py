"""The sums of a timeline or of a part of it: hours by state, tasks by outcome, how soon a task was gone."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.tools.history.timeline.spans import GAP, Cause, PersonState, TaskOutcome, Timeline


@dataclass(slots=True)
class Summary:
    """Sums in hours; reactions in seconds, from the person's sign until no process was left; `handed_back` by row."""

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
    kept_h: dict[Cause, float] = field(default_factory=dict)
    reactions_s: list[float] = field(default_factory=list)

    @property
    def preempted(self) -> int:
        """Tasks that were handed back before their end."""
        return sum(self.handed_back.values())


def summary(timeline: Timeline) -> Summary:
    """The sums. A task counts on the day of its end."""
    s = Summary()
    for span in timeline.spans:
        hours = (span.end - span.begin) / 3600
        if span.state == GAP:
            s.gap_h += hours
        else:
            s.recorded_h += hours
            s.states_h[span.state] = s.states_h.get(span.state, 0.0) + hours
    for person in timeline.person:
        hours = (person.end - person.begin) / 3600
        s.here_h += hours * (person.state in (PersonState.HERE, PersonState.LEFT))
        s.away_h += hours * (person.state is PersonState.AWAY)
    for kept in timeline.kept:
        s.kept_h[kept.cause] = s.kept_h.get(kept.cause, 0.0) + (kept.end - kept.begin) / 3600
    for task in timeline.tasks:
        s.given_h += (task.end - task.begin) / 3600
        if task.end >= timeline.end:
            continue  # it goes on, or ends on another day
        s.done += task.outcome is TaskOutcome.DONE
        s.failed += task.outcome is TaskOutcome.FAILED
        s.lost += task.outcome is TaskOutcome.LOST
        if task.outcome is TaskOutcome.HANDED_BACK:
            s.handed_back[task.row] = s.handed_back.get(task.row, 0) + 1
        if task.reaction_s is not None:
            s.reactions_s.append(task.reaction_s)
    return s
